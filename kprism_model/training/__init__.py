# SPDX-License-Identifier: Apache-2.0
"""Training: from scratch (`pretraining`), on the labels of one site (`finetune`), on one device or several.

`trainer` runs training steps (`training_step`, `prompts`, `losses`, `optimization`) until a time budget is spent
(`time_budget`), writes its log (`step_log`) and its state (`run_state`), and can be resumed. `loop` puts an ignite
engine around it, with MONAI's TensorBoard handler and a progress bar. `slice_validation` and `validation` measure Dice,
`presence` and `kinds` fit two small heads at the end, `snapshots` keeps the results of a run on a borrowed machine.

A bare GPU machine must be able to train from a pack: modules here import only torch, numpy, scipy, safetensors and
pillow. `loop` alone uses ignite, MONAI, TensorBoard and tqdm, inside its functions and where they are installed;
tests/unit/test_pack_training.py trains without them.
"""

import os

# Batches differ in their numbers of rows and clicks, and oneDNN compiles a kernel for each shape. Its cache of 1,024
# kernels is too small: a step on a CPU takes 1.3 times as long. A much larger one would take gigabytes. oneDNN reads
# the variable at its first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
