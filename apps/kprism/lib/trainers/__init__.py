# SPDX-License-Identifier: Apache-2.0
"""Trainers of the app; none is registered yet, weights come from `python -m kprism_model train`."""
