# SPDX-License-Identifier: Apache-2.0
"""K-Prism: one 2-D segmentation network for semantic, in-context and interactive knowledge (arXiv 2509.25594).

The package holds the network and all it needs to train and to predict. It never imports monailabel.
"""
