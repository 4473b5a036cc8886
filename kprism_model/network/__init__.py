# SPDX-License-Identifier: Apache-2.0
"""The network itself: encoders, object summaries, prompts, stacked soft experts, decoder."""
