# SPDX-License-Identifier: Apache-2.0
"""The table of the paper. `protocol` says how it is measured, and which reading is taken where there is a choice.

`pairs` and `clicks` are its units and its simulated user, `evaluate` measures, `table` and `chart` show the figures
beside the published ones of `figures.toml`.
"""
