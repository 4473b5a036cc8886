# SPDX-License-Identifier: Apache-2.0
"""Training: from scratch, of one site, on several devices; and the quick validation that decides what serves."""
