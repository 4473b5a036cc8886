# SPDX-License-Identifier: Apache-2.0
"""The experiment of the K-Prism paper (arXiv 2509.25594): its data sets, its training and its table.

`sets` says which data sets there are and what is used of each. `recipe` has the numbers of the training, `sampling` and
`slice_index` draw its images, `augmentation` changes them, `step` gives the loss, `training` makes the steps, and
`measuring` says what they cost.
"""
