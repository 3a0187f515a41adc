"""Rows that are ready to fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from model_delivery.protocols import Floats
from numpy.typing import NDArray


class Training(NamedTuple):
    """Shapes (n, k), (n,) and (n,)."""

    features: Floats
    labels: Floats
    stopping: NDArray[np.bool_]
