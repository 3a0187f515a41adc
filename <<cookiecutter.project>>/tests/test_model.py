"""The model: its methods, that training converges, and what anybody would expect of the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from model_delivery.protocols import Columns, Floats
from model_delivery.training.scores import log_loss, roc_auc
from numpy.typing import NDArray
from pydantic import ValidationError

from <<cookiecutter.package>>.features import Features
from <<cookiecutter.package>>.model import FILE, Model, Parameters

Training = dict[str, NDArray[Any]]


def loss(training: Training, scores: Any) -> float:
    return log_loss(training["labels"], scores, np.ones(len(training["labels"])))


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 0), ("num_leaves", 1), ("most_rounds", 0), ("leaning_rate", 0.1)],
)
def test_wrong_parameters_are_refused_by_name(
    parameters: Parameters, key: str, value: float
) -> None:
    with pytest.raises(ValidationError, match=key):
        Parameters(**parameters.model_dump() | {key: value})


def test_saved_and_loaded_models_answer_the_same_bits(
    model: Model, training: Training, tmp_path: Path
) -> None:
    model.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_text().startswith("tree\n")
    again = Model.load(tmp_path).predict(training["features"])
    np.testing.assert_array_equal(again, model.predict(training["features"]))


def test_the_same_seed_gives_the_same_bytes(
    parameters: Parameters, training: Training, tmp_path: Path
) -> None:
    for run in ("one", "two"):
        fitted = Model(parameters).fit(**training)
        fitted.save(tmp_path / run)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    other = parameters.model_copy(update={"seed": parameters.seed + 1})
    Model(other).fit(**training).save(tmp_path / "other")
    assert (tmp_path / "other" / FILE).read_bytes() != (tmp_path / "one" / FILE).read_bytes()


def test_the_first_fit_stops_on_the_latest_rows_and_the_second_uses_all(
    parameters: Parameters, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, list[int]]] = []
    train = lgb.train

    def spy(params: Any, data: lgb.Dataset, **options: Any) -> lgb.Booster:
        booster = train(params, data, **options)
        valid = [part.num_data() for part in options.get("valid_sets", [])]
        seen.append((data.num_data(), valid))
        return booster

    monkeypatch.setattr(lgb, "train", spy)
    model = Model(parameters).fit(**training)
    every, late = len(training["labels"]), int(training["stopping"].sum())
    assert seen == [(every - late, [every - late, late]), (every, [])]
    assert model.booster is not None
    best = int(np.argmin(model.curve["stopping"])) + 1
    assert model.booster.num_trees() == best


def test_the_training_loss_falls(model: Model) -> None:
    curve = np.array(model.curve["training"])
    assert len(curve) > 5
    assert np.isfinite(curve).all()
    assert (np.diff(curve) < 0).all()


def test_it_beats_the_base_rate_on_rows_it_did_not_stop_on(
    parameters: Parameters, training: Training
) -> None:
    third = len(training["labels"]) // 3
    kept, later = slice(0, 2 * third), slice(2 * third, None)
    early = {name: values[kept] for name, values in training.items()}
    early["stopping"] = np.arange(2 * third) >= 1.6 * third
    model = Model(parameters).fit(**early)
    scores, labels = model.predict(training["features"][later]), training["labels"][later]
    base = np.full(len(labels), early["labels"].mean())
    ones = np.ones(len(labels))
    assert log_loss(labels, scores, ones) < log_loss(labels, base, ones)
    assert roc_auc(labels, scores, ones) > 0.6


def test_it_overfits_a_small_batch_to_near_zero(parameters: Parameters, training: Training) -> None:
    """A model that cannot learn 64 rows by heart has a broken path from rows to loss."""
    late = training["labels"] == 1
    rows = np.r_[np.flatnonzero(late)[:32], np.flatnonzero(~late)[:32]]
    loose = {"min_data_in_leaf": 1, "lambda_l2": 0.0, "feature_fraction": 1.0, "num_leaves": 31}
    greedy = parameters.model_copy(update=loose | {"most_rounds": 300, "patience": 300})
    batch = {name: values[rows] for name, values in training.items()}
    batch["stopping"] = np.ones(64, bool)
    model = Model(greedy)
    model._choose_rounds = lambda *_: 300  # type: ignore[method-assign]
    model.fit(**batch)
    assert loss(batch, model.predict(batch["features"])) < 0.01


def test_missing_values_never_reach_loss_or_score(
    parameters: Parameters, training: Training
) -> None:
    features = training["features"]
    holes = np.where(np.random.default_rng(0).random(features.shape) < 0.4, np.nan, features)
    model = Model(parameters).fit(**training | {"features": holes})
    assert all(np.isfinite(values).all() for values in model.curve.values())
    nothing = np.full((3, features.shape[1]), np.nan)
    for scores in (model.predict(holes), model.predict(nothing)):
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()


def at_hour(columns: Columns, hour: int) -> Columns:
    days = columns["scheduled"].astype("datetime64[D]")
    return {**columns, "scheduled": days + np.timedelta64(hour, "h")}


def test_delays_build_up_over_the_day(features: Features, model: Model, columns: Columns) -> None:
    """Directional: the same flights, scheduled in the evening, are late more often."""

    def mean(hour: int) -> float:
        return float(model.predict(features.transform(at_hour(columns, hour))).mean())

    assert mean(6) < mean(12) < mean(19)


def test_scores_of_late_flights_are_higher(
    features: Features, model: Model, columns: Columns
) -> None:
    """Minimum functionality: on its own rows it tells late from punctual clearly."""
    scores: Floats = model.predict(features.transform(columns))
    late = columns["late"].astype(bool)
    assert scores[late].mean() > scores[~late].mean() + 0.1


def test_the_year_does_not_matter(features: Features, model: Model, columns: Columns) -> None:
    """Invariance: 2019 has the weekdays and dates of 2013 and scores the same."""
    rows = {name: values[:500] for name, values in columns.items()}
    same_calendar = np.datetime64("2019-01-01") - np.datetime64("2013-01-01")
    later = {**rows, "scheduled": rows["scheduled"] + same_calendar}
    one, other = (model.predict(features.transform(each)) for each in (rows, later))
    np.testing.assert_array_equal(one, other)
