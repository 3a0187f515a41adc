"""A service with a model of one number, which fails on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from model_delivery.protocols import Columns, Floats
from model_delivery.serving import ModelService
from pydantic import TypeAdapter

NAN, BOOM, SHORT, ABOVE, STRICT = 101, 102, 103, 104, 105
"""Values of `count` that make the model fail, each in its way."""


class Stub(ModelService):
    """Answers 0.01 for each unit of `amount`, up to 1."""

    def load(self, folder: Path) -> None:
        self.weight = float((folder / "weight.txt").read_text())

    def score(self, columns: Columns) -> Floats:
        count = columns["count"][0]
        scores: Floats = np.minimum(columns["amount"] * self.weight, 1.0)
        if count == BOOM:
            raise RuntimeError("the model fell over")
        if count == STRICT:
            TypeAdapter(int).validate_python("ours, not the caller's")
        if count == SHORT:
            return scores[1:]
        return scores * {NAN: np.nan, ABOVE: 1000.0}.get(count, 1.0)


Service = Stub
