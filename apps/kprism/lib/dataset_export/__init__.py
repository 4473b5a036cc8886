# SPDX-License-Identifier: Apache-2.0
"""A site's images and accepted labels as a data set for other programs: the folders of nnU-Net and of the Decathlon."""
