# SPDX-License-Identifier: Apache-2.0
"""The evaluation protocol, its figures, and its reports.

May import the top-level modules of `kprism_model`, `network`, `data` and `interaction`; never `training`.
"""
