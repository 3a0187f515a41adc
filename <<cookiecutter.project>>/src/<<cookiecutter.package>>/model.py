"""The model: gradient-boosted trees whose number is chosen on the latest training rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import lightgbm as lgb
import numpy as np
from model_delivery.protocols import Floats, Strict
from numpy.typing import NDArray
from pydantic import Field

from <<cookiecutter.package>>.features import CATEGORIES, CLOCK, NUMBERS

CATEGORY_INDEX = [len(CLOCK) + len(NUMBERS) + i for i in range(len(CATEGORIES))]
FILE = "model.txt"


class Parameters(Strict):
    """What `config/model.yaml` may hold; names as in LightGBM's documentation."""

    learning_rate: Annotated[float, Field(gt=0, le=1)]
    num_leaves: Annotated[int, Field(ge=2)]
    min_data_in_leaf: Annotated[int, Field(ge=1)]
    feature_fraction: Annotated[float, Field(gt=0, le=1)]
    lambda_l2: Annotated[float, Field(ge=0)]
    most_rounds: Annotated[int, Field(ge=1)]
    patience: Annotated[int, Field(ge=1)]
    seed: int
    threads: Annotated[int, Field(ge=1)]

    def lightgbm(self) -> dict[str, Any]:
        """Return LightGBM's parameters; deterministic for one number of threads."""
        own = self.model_dump(exclude={"most_rounds", "patience", "threads"})
        fixed = {"objective": "binary", "verbosity": -1, "deterministic": True}
        return own | fixed | {"num_threads": self.threads, "force_row_wise": True}


class Model:
    """Probability of a late departure.

    Attributes
    ----------
    curve
        Log loss by round on the rows that decide when to stop and on those before them.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.curve: dict[str, list[float]] = {}
        self.booster: lgb.Booster | None = None

    def fit(self, features: Floats, labels: Floats, stopping: NDArray[np.bool_]) -> Self:
        """Choose the number of trees on the `stopping` rows, then fit that many on all rows.

        Parameters
        ----------
        features, labels
            Shapes (n, k) and (n,); labels are 0 or 1.
        stopping
            Shape (n,): the latest rows. They stop the first fit and are part of the second.
        """
        rounds = self._choose_rounds(features, labels, stopping)
        data = lgb.Dataset(features, labels, categorical_feature=CATEGORY_INDEX)
        self.booster = lgb.train(self.parameters.lightgbm(), data, num_boost_round=rounds)
        return self

    def predict(self, features: Floats) -> Floats:
        """Return the probability of each row, shape (n,).

        One thread: a service answers many small requests side by side.
        """
        assert self.booster is not None, "fit or load the model first"
        return np.asarray(self.booster.predict(features, num_threads=1), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write the trees as LightGBM's text, which loads without running any code."""
        assert self.booster is not None, "fit or load the model first"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(self.booster.model_to_string())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; such a model can predict, and not be fitted again."""
        model = cls.__new__(cls)
        model.curve = {}
        model.booster = lgb.Booster(model_file=str(folder / FILE))
        return model

    def _choose_rounds(self, features: Floats, labels: Floats, stopping: NDArray[np.bool_]) -> int:
        early = lgb.Dataset(
            features[~stopping], labels[~stopping], categorical_feature=CATEGORY_INDEX
        )
        latest = early.create_valid(features[stopping], labels[stopping])
        history: dict[str, dict[str, list[float]]] = {}
        booster = lgb.train(
            self.parameters.lightgbm(),
            early,
            num_boost_round=self.parameters.most_rounds,
            valid_sets=[early, latest],
            valid_names=["training", "stopping"],
            callbacks=[
                lgb.early_stopping(self.parameters.patience, verbose=False),
                lgb.record_evaluation(history),
            ],
        )
        self.curve = {name: values["binary_logloss"] for name, values in history.items()}
        return max(int(booster.best_iteration), 1)
