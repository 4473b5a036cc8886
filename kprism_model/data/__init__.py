# SPDX-License-Identifier: Apache-2.0
"""From labelled images on disk to training batches.

May import the top-level modules of `kprism_model` and `network`; never `interaction`, `evaluation` or `training`. The
modules that a batch needs import only torch, numpy, scipy, safetensors and Pillow, so that they run on a GPU machine
without the server's packages.
"""
