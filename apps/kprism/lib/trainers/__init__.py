# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning on submissions, in its own process. Imports `learning`, `imaging` and the modules beside the rooms."""
