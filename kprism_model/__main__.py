# SPDX-License-Identifier: Apache-2.0
"""`python -m kprism_model COMMAND`: the same as `kprism COMMAND`, where the package is not installed."""

from __future__ import annotations

import sys

from kprism_model.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
