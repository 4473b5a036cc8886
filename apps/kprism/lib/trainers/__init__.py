# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on submissions, in a process of its own. Imports `learning`, `imaging` and what lies beside the rooms."""
