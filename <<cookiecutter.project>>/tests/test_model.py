"""The model's methods, and that training converges on what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from model_delivery.training.scores import log_loss, roc_auc
from prepared import Training
from pydantic import ValidationError

from <<cookiecutter.package>>.model import FILE, Model, Parameters


def loss(training: Training, scores: Any) -> float:
    return log_loss(training.labels, scores, np.ones(len(training.labels)))


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
    again = Model.load(tmp_path).predict(training.features)
    np.testing.assert_array_equal(again, model.predict(training.features))


def test_the_same_seed_gives_the_same_bytes(
    parameters: Parameters, training: Training, tmp_path: Path
) -> None:
    for run in ("one", "two"):
        fitted = Model(parameters).fit(training.features, training.labels, training.stopping)
        fitted.save(tmp_path / run)
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()
    other = parameters.model_copy(update={"seed": parameters.seed + 1})
    Model(other).fit(training.features, training.labels, training.stopping).save(tmp_path / "other")
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
    model = Model(parameters).fit(training.features, training.labels, training.stopping)
    every, late = len(training.labels), int(training.stopping.sum())
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
    third = len(training.labels) // 3
    kept, later = slice(0, 2 * third), slice(2 * third, None)
    stopping = np.arange(2 * third) >= 1.6 * third
    model = Model(parameters).fit(training.features[kept], training.labels[kept], stopping)
    scores, labels = model.predict(training.features[later]), training.labels[later]
    base = np.full(len(labels), training.labels[kept].mean())
    ones = np.ones(len(labels))
    assert log_loss(labels, scores, ones) < log_loss(labels, base, ones)
    assert roc_auc(labels, scores, ones) > 0.6


def test_it_overfits_a_small_batch_to_near_zero(parameters: Parameters, training: Training) -> None:
    """A model that cannot learn 64 rows by heart has a broken path from rows to loss."""
    rows = np.r_[np.flatnonzero(training.labels)[:32], np.flatnonzero(training.labels == 0)[:32]]
    loose = {"min_data_in_leaf": 1, "lambda_l2": 0.0, "feature_fraction": 1.0, "num_leaves": 31}
    greedy = parameters.model_copy(update=loose | {"most_rounds": 300, "patience": 300})
    batch = Training(training.features[rows], training.labels[rows], np.ones(64, bool))
    model = Model(greedy)
    model._choose_rounds = lambda *_: 300  # type: ignore[method-assign]
    model.fit(batch.features, batch.labels, batch.stopping)
    assert loss(batch, model.predict(batch.features)) < 0.01


def test_missing_values_never_reach_loss_or_score(
    parameters: Parameters, training: Training
) -> None:
    holes = np.where(
        np.random.default_rng(0).random(training.features.shape) < 0.4, np.nan, training.features
    )
    model = Model(parameters).fit(holes, training.labels, training.stopping)
    assert all(np.isfinite(values).all() for values in model.curve.values())
    nothing = np.full((3, training.features.shape[1]), np.nan)
    for scores in (model.predict(holes), model.predict(nothing)):
        assert np.isfinite(scores).all()
        assert ((scores >= 0) & (scores <= 1)).all()
