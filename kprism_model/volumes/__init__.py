# SPDX-License-Identifier: Apache-2.0
"""Prediction in volumes: slices encoded once, prompts in voxels, and propagation of masks from slice to slice.

May import the top-level modules of `kprism_model` and `network`; never `interaction`, `data`, `evaluation`, `training`.
"""
