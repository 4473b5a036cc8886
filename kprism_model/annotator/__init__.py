# SPDX-License-Identifier: Apache-2.0
"""The simulated annotator: where a person would click or draw next."""
