# SPDX-License-Identifier: Apache-2.0
"""The evaluation protocol, its figures, and the reports of them."""
