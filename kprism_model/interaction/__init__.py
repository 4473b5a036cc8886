# SPDX-License-Identifier: Apache-2.0
"""The simulated user: clicks, scribbles and initial masks, for training and evaluation.

May import the top-level modules of `kprism_model`, `network` and `volumes`; never `data`, `evaluation` or `training`.
`clicks`, `corrupted_masks` and `propagated_masks` use SciPy, one mask at a time. The `batched_*` modules compute the
same in torch, a whole batch at a time on the GPU: SciPy would copy every mask to the host and make the GPU wait.
"""
