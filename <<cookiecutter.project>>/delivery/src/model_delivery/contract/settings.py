"""What `config/gates.yaml` and `config/delivery.yaml` may hold: limits, environments."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model_delivery.contract.config import Strict


class Limit(Strict):
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
        return f"≥ {self.min:,g}" if self.min is not None else f"≤ {self.max:,g}"

    def holds(self, value: float) -> bool:
        """Return whether `value` keeps the limit; not-a-number never does."""
        low = float("-inf") if self.min is None else self.min
        return low <= value <= (float("inf") if self.max is None else self.max)


Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class DataLimits(Strict):
    """Limits of the gate `data` beside the contract, whose every breach stops."""

    rows: Limit
    scale: Limit


class ModelLimits(Strict):
    """Limits of the gate `model`."""

    roc_auc: Limit
    log_loss_gain: Limit
    calibration_error: Limit
    overfit_gap: Limit
    segment_roc_auc: Limit
    segment_rows: Annotated[int, Field(ge=30)]
    champion_difference: Limit
    segment_champion_difference: Limit


class PackageLimits(Strict):
    """Limits of the gate `package`."""

    megabytes: Limit
    image_megabytes: Limit


class ApiLimits(Strict):
    """What the gate `api` asks of the running service."""

    valid_rows: Count


class LoadLimits(Strict):
    """The load of the gate `load`, and its limits."""

    users: Count
    seconds: Seconds
    rounds: Annotated[int, Field(ge=4)]
    most_rounds: Annotated[int, Field(ge=4)]
    error_share: Limit
    qps: Limit
    p95_ms: Limit
    p99_ms: Limit
    qps_to_twin: Limit
    p50_to_twin: Limit
    qps_to_champion: Limit
    p95_to_champion: Limit


class DeepchecksLimits(Strict):
    """Named limits of Deepchecks' checks; a named check that did not run is inconclusive."""

    data: dict[str, Limit]
    model: dict[str, Limit]


class Gates(Strict):
    """The whole of `config/gates.yaml`."""

    data: DataLimits
    model: ModelLimits
    deepchecks: DeepchecksLimits
    package: PackageLimits
    api: ApiLimits
    load: LoadLimits


class Environment(Strict):
    """One place where a release runs."""

    target: Literal["host"]
    port: Annotated[int, Field(ge=1024, le=65535)]


class Image(Strict):
    """How an OCI image is built."""

    base: str
    builder: Literal["docker", "buildah"]


class Delivery(Strict):
    """The whole of `config/delivery.yaml`."""

    environments: dict[Literal["production"], Environment]
    keep_releases: Annotated[int, Field(ge=2)]
    start_timeout_seconds: Seconds
    image: Image
