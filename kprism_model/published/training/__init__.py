# SPDX-License-Identifier: Apache-2.0
"""The training of the paper. `recipe` has its numbers.

`slice_index` and `sampling` draw images, `augmentation` changes them, `step` gives the loss, `run` makes the steps,
`measuring` says what they cost, on `noise` before a run. `plan` is what the whole will take, and `planning` makes it
from the command's options.
"""
