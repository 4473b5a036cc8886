# SPDX-License-Identifier: Apache-2.0
"""Where the repository and its weights are, whatever folder a benchmark is started in."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""

SHIPPED_WEIGHTS = ROOT / "apps" / "kprism" / "model" / "kprism_small"
"""The shipped checkpoint."""
