# SPDX-License-Identifier: Apache-2.0
"""The experiment of the K-Prism paper (arXiv 2509.25594): its data sets, its training and its table.

`sets` says which data sets there are and what is used of each, `protocol` how the table is measured. `figures.toml`
holds the published figures.
"""
