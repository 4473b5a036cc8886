# SPDX-License-Identifier: Apache-2.0
"""The simulated user: clicks, scribbles and first masks for training and evaluation. Imports `volumes` and below."""
