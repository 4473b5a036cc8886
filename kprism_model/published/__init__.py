# SPDX-License-Identifier: Apache-2.0
"""The experiment of the K-Prism paper (arXiv 2509.25594): `training` is its run, `evaluation` its table.

`sets` says which data sets there are and what is used of each.
"""
