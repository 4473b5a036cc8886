# SPDX-License-Identifier: Apache-2.0
"""A few of many, evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def spread(numbers: Sequence[int] | NDArray[np.int64], count: int) -> list[int]:
    """At most `count` of `numbers`, in order: the middle ones of as many equal parts."""
    count = min(count, len(numbers))
    return [int(numbers[int((place + 0.5) * len(numbers) / count)]) for place in range(count)]
