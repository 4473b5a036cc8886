# SPDX-License-Identifier: Apache-2.0
"""Export to ONNX, and the check that it computes the same."""
