"""Files of `config/` as types: the data contract, and environments."""

import datetime as dt
import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from model_delivery.contract.limits import Ceiling, Share
from model_delivery.protocols import Strict

Kind = Literal["number", "integer", "category", "timestamp", "boolean"]
SLACK = 0.1


class Column(Strict, allow_inf_nan=False):
    """One column: its type, its domain, and the largest shares of rows that may leave it.

    `missing` 0 means that a value is required; `outside`, since real sources hold a few slips,
    is the share beyond `min`, `max`, `values` or `pattern`: a request has no such allowance.
    """

    type: Kind
    min: float | None = None
    max: float | None = None
    values: Annotated[list[str], Field(min_length=1)] | None = None
    pattern: re.Pattern[str] | None = None
    unit: str | None = None
    missing: Share = 0.0
    outside: Share = 0.0

    @model_validator(mode="after")
    def _domain_fits_type(self) -> Self:
        if [self.values, self.pattern].count(None) != (1 if self.type == "category" else 2):
            raise ValueError("a category, and no other type, has `values` or else `pattern`")
        if self.pattern and self.pattern.flags != re.UNICODE:  # it is part of a longer one
            raise ValueError("`pattern` has flags for all of it, as (?i): write [Aa]")
        if self.type not in ("number", "integer") and (self.min, self.max) != (None, None):
            raise ValueError(f"`min` and `max` are for numbers, not for a {self.type}")
        if self.type not in ("number", "category") and self.missing:
            raise ValueError(f"`missing` needs type number or category: make this {self.type} one")
        if self.min is not None and self.max is not None:
            if self.min > self.max:
                raise ValueError("`min` is above `max`")
            if self.type == "integer" and math.ceil(self.min) > math.floor(self.max):
                raise ValueError("no whole number is between `min` and `max`")
        if self.type == "integer" and not -(2**63) <= (self.min or 0) < 2**63:
            raise ValueError("`min` is no integer of 64 bits")
        return self


class Exclusion(Strict):
    """A rule that takes out rows without a value in `column`, counted, and a `most` share."""

    column: str
    most: Share


class DataContract(Strict):
    """The whole of `config/data.yaml`.

    `slack` is added to shares for the rows of one month or week by themselves, which vary more.
    """

    task: Literal["binary"]
    target: str
    time: str
    key: Annotated[list[str], Field(min_length=1)]
    segments: list[str] = []
    as_of: Annotated[dt.date, Field(strict=False)]
    slack: Share = SLACK
    exclude: dict[str, Exclusion] = {}
    columns: dict[str, Column]

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        excluding = [rule.column for rule in self.exclude.values()]
        for name in (self.target, self.time, *self.key, *self.segments, *excluding):
            if name not in self.columns:
                raise ValueError(f"`{name}` is named as a column, but is not in `columns`")
        for name in {"score"} & {*self.columns} | {"digest"} & {*self.key}:
            raise ValueError(f"`{name}` is what the delivery adds to rows: rename the column")
        if self.columns[self.target].type != "boolean":
            raise ValueError(f"`target` must be a boolean column for task {self.task}")
        if self.columns[self.time].type != "timestamp":
            raise ValueError("`time` must be a timestamp column")
        return self

    @property
    def inputs(self) -> dict[str, Column]:
        """The columns a request carries: all but the target."""
        return {name: spec for name, spec in self.columns.items() if name != self.target}

    def with_shares_of(self, now: "DataContract") -> "DataContract":
        """Return this contract with shares, slack, key and segments of another, if it has them."""
        columns = dict(self.columns)
        for name, spec in columns.items():
            if (new := now.columns.get(name)) and new.type == spec.type:
                shares = {"missing": new.missing, "outside": new.outside}
                columns[name] = spec.model_copy(update=shares)
        changes: dict[str, Any] = {"columns": columns, "slack": now.slack}
        if {now.target, *now.key, *now.segments} <= {*columns}:
            changes |= {"key": now.key, "segments": now.segments}
        return self.model_copy(update=changes)

    def of_type(self, *kinds: Kind) -> list[str]:
        """Return the names of the input columns of these types, in order."""
        return [name for name, spec in self.inputs.items() if spec.type in kinds]


EnvironmentName = Literal["test", "staging", "production"]


class Step(Strict, allow_inf_nan=False):
    """A step of a canary: the share of requests that the new release gets, and for how long."""

    weight: Annotated[float, Field(gt=0, le=0.9)]  # the champion keeps some, to compare with
    seconds: PositiveFloat

    @property
    def deadline(self) -> float:
        """The seconds after which it is inconclusive, if it is nothing else."""
        return 2 * self.seconds

    def most(self, rate: float) -> float:
        """Return how many requests it can get, at a rate in requests a second."""
        return self.weight * rate * self.deadline


class Environment(Strict):
    """One place for a release, and the steps on its way there beside a champion.

    On target `host` it serves at a port; with `load` it must keep the absolute limits of the load
    gate there, before any client asks. On target `batch` nothing runs: `ml predict` scores by it.
    """

    target: Literal["host", "batch"]
    port: Annotated[int, Field(ge=1024, le=65535)] = 0
    load: bool = False
    canary: list[Step] = []

    @model_validator(mode="after")
    def _port_fits_target(self) -> Self:
        if self.target == "host" and not self.port:
            raise ValueError("target `host` needs a `port`")
        if self.target == "batch" and (self.port or self.load or self.canary):
            raise ValueError("nothing runs on target `batch`: no `port`, `load` or `canary`")
        return self


class Most(Ceiling):
    """A limit of a rollout, in which there is nothing to train: `retrain` would pass a job."""

    outcome: Literal["stop", "warn"]


class RolloutLimits(Strict, allow_inf_nan=False):
    """How a release is judged on its way; `requests_per_second` only tells what it may cost."""

    shadow_rows: PositiveInt
    requests_per_second: PositiveFloat
    min_requests: PositiveInt
    shadow_distance: Most
    error_share: Most
    p95_ms: Most
    score_distance: Most
    memory_mb: Most


Cron = Annotated[str, Field(pattern=r"^[\d*/,-]+( [\d*/,A-Za-z-]+){4}$")]


class Monitoring(Strict):
    """When its workflow starts by itself."""

    cron: Cron = "17 4 * * *"


class Retraining(Monitoring):
    """The same, and what holds it; days are those of the data."""

    cron: Cron = "17 3 * * 1"
    cooldown_days: Annotated[int, Field(ge=0)] = 7
    most_a_month: PositiveInt = 4


class LogSettings(Strict):
    """The log of predictions: where it is, and which input columns it never holds, or hashed."""

    folder: str = ""
    private: list[str] = []
    hashed: list[str] = []
    keep_days: PositiveInt = 400


class Delivery(Strict):
    """The whole of `config/delivery.yaml`."""

    environments: dict[EnvironmentName, Environment]
    rollout: RolloutLimits
    log: LogSettings = LogSettings()
    keep_releases: Annotated[int, Field(ge=2)]
    start_timeout_seconds: PositiveFloat
    variables: list[str] = []
    retraining: Retraining = Retraining()
    monitoring: Monitoring = Monitoring()

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        for step in (step for place in self.environments.values() for step in place.canary):
            rate, share = self.rollout.requests_per_second, min(step.weight, 1 - step.weight)
            fewest = round(share * rate * step.deadline, 3)  # of 1 - 0.9, too
            if fewest < self.rollout.min_requests:
                said = f"in a step of {step.weight:.0%} one release gets {fewest:.0f} requests"
                raise ValueError(f"{said}, below `min_requests`: make it longer, or nearer 50%")
        ports = [place.port for place in self.environments.values() if place.port]
        if len(set(ports)) < len(ports):
            raise ValueError(f"two environments share a port ({ports}): give each its own")
        return self
