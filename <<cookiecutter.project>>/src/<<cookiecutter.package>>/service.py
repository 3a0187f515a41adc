"""The service: what happens between a valid request and its answer."""

from __future__ import annotations

from pathlib import Path

from model_delivery.protocols import Columns, Floats
from model_delivery.serving import ModelService

from <<cookiecutter.package>>.features import Features
from <<cookiecutter.package>>.model import Model


class Service(ModelService):
    """Answers the probability that each departure will be late."""

    def load(self, folder: Path) -> None:
        """Read features and model; called once, after the digest was checked."""
        self.features = Features.load(folder)
        self.model = Model.load(folder)

    def score(self, columns: Columns) -> Floats:
        """Return the probability of each row, shape (n,)."""
        return self.model.predict(self.features.transform(columns))
