# SPDX-License-Identifier: Apache-2.0
"""The experiment of the K-Prism paper (arXiv 2509.25594): its data sets, its training and its table.

`sets` says which data sets there are and what is used of each.

Training: `recipe` has the numbers, `sampling` and `slice_index` draw images, `augmentation` changes them, `step` gives
the loss, `training` makes the steps, `measuring` says what they cost, and `plan` what the whole will take.

The table: `protocol` says how it is measured, `figures.toml` holds the published figures.
"""
