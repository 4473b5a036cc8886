# SPDX-License-Identifier: Apache-2.0
"""Training: from scratch, of one site, on several devices; and the quick validation that decides what serves."""

import os

# Batches differ in rows and clicks, and oneDNN compiles a kernel for each shape. In its usual 1,024 places it keeps too
# few of them: a step on a CPU takes 1.3 times as long. Many more would take gigabytes. It reads this when first used.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
