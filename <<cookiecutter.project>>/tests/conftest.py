"""Rows for the tests: two real months, small enough to fit a model in a second."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import settings
from model_delivery.project import Project, find_project
from model_delivery.protocols import Columns, unset_variables
from numpy.typing import NDArray

from <<cookiecutter.package>> import sources
from <<cookiecutter.package>>.features import Features
from <<cookiecutter.package>>.model import Model, Parameters

Training = dict[str, NDArray[Any]]
"""Rows that are ready to fit: `features` (n, k), `labels` (n,) and `stopping` (n,)."""
settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")
ROWS = 8_000


@pytest.fixture(scope="session")
def project() -> Project:
    return find_project()


@pytest.fixture(scope="session")
def source() -> None:
    """Skip what asks the source where a variable that it needs is not set, as in a fork."""
    for name in unset_variables():
        pytest.skip(f"sources.py needs the variable {name}")


@pytest.fixture(scope="session")
def extraction(source: None) -> pd.DataFrame:
    """January and February as the source gives them, cancelled flights included."""
    return sources.extract(dt.date(2013, 3, 1))


@pytest.fixture(scope="session")
def columns(extraction: pd.DataFrame) -> Columns:
    """Every sixth labelled row, in the order of time, as `ml train` hands them on."""
    rows = extraction.dropna(subset=["late"]).iloc[::6].head(ROWS)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="session")
def features(columns: Columns) -> Features:
    return Features.fit(columns)


@pytest.fixture(scope="session")
def training(columns: Columns, features: Features) -> Training:
    labels = columns["late"].astype(float)
    stopping = np.arange(len(labels)) >= 0.8 * len(labels)
    return {"features": features.transform(columns), "labels": labels, "stopping": stopping}


@pytest.fixture(scope="session")
def parameters(project: Project) -> Parameters:
    """The project's parameters, but for fewer rows."""
    few: dict[str, Any] = {"min_data_in_leaf": 20, "num_leaves": 15, "learning_rate": 0.1}
    return Parameters(**project.parameters.model_dump() | few)


@pytest.fixture(scope="session")
def model(training: Training, parameters: Parameters) -> Model:
    return Model(parameters).fit(**training)
