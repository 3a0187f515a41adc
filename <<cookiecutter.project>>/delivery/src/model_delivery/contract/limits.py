"""The limits of `config/gates.yaml` as types, and the outcome that each leads to."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from model_delivery.protocols import Strict

Share = Annotated[float, Field(ge=0, le=1)]


class Limit(Strict, allow_inf_nan=False):
    """A bound on one value: at least `min` or at most `max`, else `outcome`."""

    min: float | None = None
    max: float | None = None
    outcome: Literal["stop", "retrain", "warn"]

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.min is None) == (self.max is None):
            raise ValueError("give `min` or `max`, one of them")
        return self

    def __str__(self) -> str:
        return f"≥ {self.min:,.12g}" if self.min is not None else f"≤ {self.max:,.12g}"

    def holds(self, value: float) -> bool:
        """Return whether `value` keeps the limit; not-a-number never does."""
        return value >= self.min if self.min is not None else value <= (self.max or 0.0)


class Floor(Limit):
    """A limit from below: the value must not be less."""

    min: float


class ShareFloor(Floor):
    """A limit from below of what lies between 0 and 1."""

    min: Share


class Ceiling(Limit):
    """A limit from above, of what is never negative: the value must not be more."""

    max: NonNegativeFloat


class DataLimits(Strict):
    """Limits of the gate `data` beside the contract, whose every breach stops."""

    rows: Floor
    scale: Ceiling


class ModelLimits(Strict):
    """Limits of the gate `model`."""

    roc_auc: ShareFloor
    log_loss_gain: Floor
    calibration_error: Ceiling
    overfit_gap: Ceiling
    segment_roc_auc: ShareFloor
    segment_rows: Annotated[int, Field(ge=30)]
    champion_difference: Floor
    segment_champion_difference: Floor


class PackageLimits(Strict):
    """Limits of the gate `package`."""

    megabytes: Ceiling


class LoadLimits(Strict):
    """The load of the gate `load`, and its limits."""

    users: PositiveInt
    seconds: PositiveFloat
    rounds: Annotated[int, Field(ge=4)]
    most_rounds: Annotated[int, Field(ge=4)]
    error_share: Ceiling
    qps: Floor
    p95_ms: Ceiling
    p99_ms: Ceiling
    qps_to_twin: Floor
    p50_to_twin: Ceiling
    qps_to_champion: Floor
    p95_to_champion: Ceiling


DataCheck = Literal["NewCategoryTrainTest", "FeatureLabelCorrelation", "FeatureDrift", "LabelDrift"]
ModelCheck = Literal["SimpleModelComparison", "WeakSegmentsPerformance", "PredictionDrift"]


class DeepchecksLimits(Strict):
    """Named limits of the checks that `deepchecks_suites.py` can read; each must have run."""

    data: dict[DataCheck, Ceiling]
    model: dict[ModelCheck, Limit]

    @model_validator(mode="after")
    def _from_the_right_side(self) -> Self:
        for name, limit in self.model.items():
            side = "max" if name == "PredictionDrift" else "min"
            if getattr(limit, side) is None:
                raise ValueError(f"`model.{name}` needs `{side}`: the other lets all pass")
        return self


class MonitorLimits(Strict):
    """Limits of what is watched in production, by windows of the rows' own time.

    A finding counts if `needed` of the last `windows` have it.
    """

    window_days: PositiveInt
    windows: PositiveInt
    needed: PositiveInt
    requests: Floor
    labels: Floor
    scale: Ceiling
    refused: Ceiling
    failed: Ceiling
    feature_drift: Ceiling
    prediction_drift: Ceiling
    roc_auc: Floor
    calibration_error: Ceiling
    previous: Floor
    new_data: Ceiling

    @model_validator(mode="after")
    def _can_find(self) -> Self:
        if self.needed > self.windows:
            raise ValueError("`needed` is above `windows`: no finding could ever count")
        if self.windows < 2:
            raise ValueError("`windows` is below 2: labels that never arrive would not be missed")
        if self.requests.min < 100:
            raise ValueError("`requests` has a min below 100: so few scores may well be the same")
        return self


class Gates(Strict):
    """The whole of `config/gates.yaml`."""

    data: DataLimits
    model: ModelLimits
    deepchecks: DeepchecksLimits
    package: PackageLimits
    load: LoadLimits
    monitor: MonitorLimits
