# SPDX-License-Identifier: Apache-2.0
"""The network itself: encoders, object summaries, prompts, mixtures of experts, decoder.

Imports torch only, and no other part of `kprism_model`.
"""
