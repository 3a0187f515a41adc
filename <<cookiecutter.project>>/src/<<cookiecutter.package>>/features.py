"""Features: fitted vocabularies and a pure transformation, the same for training and service."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from model_delivery.files import write_json
from model_delivery.protocols import Columns, Floats
from numpy.typing import NDArray

NUMBERS = (
    "distance",
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "precip",
    "pressure",
    "visib",
)
CATEGORIES = ("carrier", "origin", "dest")
CLOCK = ("month", "day", "weekday", "minute_of_day")
FILE = "features.json"


@dataclass(frozen=True)
class Features:
    """The vocabulary of each category, learned from training rows.

    A value that was not seen in training becomes not-a-number, which the model treats as missing.
    """

    vocabularies: dict[str, list[str]]

    def __post_init__(self) -> None:
        codes = {c: {v: float(i) for i, v in enumerate(w)} for c, w in self.vocabularies.items()}
        object.__setattr__(self, "_codes", codes)

    @property
    def names(self) -> tuple[str, ...]:
        """The features' names, in the order of the matrix's columns."""
        return CLOCK + NUMBERS + CATEGORIES

    @classmethod
    def fit(cls, columns: Columns) -> Self:
        """Learn the sorted vocabulary of each category."""
        return cls({name: sorted({v for v in columns[name] if v}) for name in CATEGORIES})

    def transform(self, columns: Columns) -> Floats:
        """Return the features of each row.

        Parameters
        ----------
        columns
            Arrays of n rows: `scheduled` as datetime64, numbers as float64, categories as str.

        Returns
        -------
        numpy.ndarray
            Shape (n, one for each of `names`), float64; finite, or not-a-number (missing).
        """
        scheduled = columns["scheduled"]
        matrix = np.empty((len(scheduled), len(self.names)))
        if len(scheduled) > 100:  # those of a file share their times; of a request it takes longer
            times, place = np.unique(scheduled, return_inverse=True)
            matrix[:, : len(CLOCK)] = wall_clock(times)[place]
        else:
            matrix[:, : len(CLOCK)] = wall_clock(scheduled)
        for index, name in enumerate(NUMBERS, len(CLOCK)):
            matrix[:, index] = columns[name]
        codes: dict[str, dict[str, float]] = self._codes  # type: ignore[attr-defined]
        for index, name in enumerate(CATEGORIES, len(CLOCK) + len(NUMBERS)):
            code = codes[name]
            matrix[:, index] = [code.get(value, np.nan) for value in columns[name]]
        return matrix

    def save(self, folder: Path) -> None:
        """Write the vocabularies as JSON."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**json.loads((folder / FILE).read_text()))


def wall_clock(scheduled: NDArray[Any]) -> Floats:
    """Return the features of `CLOCK` for each time, Monday being 0: shape (n, one for each).

    Python's own calendar: for the one row of a request it takes half the time of numpy's.
    """
    times = scheduled.astype("datetime64[us]").tolist()
    clock = [(t.month, t.day, t.weekday(), 60 * t.hour + t.minute) for t in times]
    return np.array(clock, dtype=float) if clock else np.empty((0, len(CLOCK)))
