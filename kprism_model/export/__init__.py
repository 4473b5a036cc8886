# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX. May import `network`, `checkpoint` and `preprocess` of `kprism_model`."""
