# SPDX-License-Identifier: Apache-2.0
"""Volumes: slices encoded once, prompts in voxels, structures followed from slice to slice."""
