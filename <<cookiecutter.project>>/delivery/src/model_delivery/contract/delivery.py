"""Environments and how releases reach them: `config/delivery.yaml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model_delivery.contract.config import Strict

Port = Annotated[int, Field(ge=1024, le=65535)]


class Environment(Strict):
    """One place where a release runs."""

    target: Literal["host"]
    port: Port


class Image(Strict):
    """How an OCI image is built."""

    base: str
    builder: Literal["docker", "buildah"]


class Delivery(Strict):
    """The whole of `config/delivery.yaml`."""

    environments: dict[Literal["production"], Environment]
    keep_releases: Annotated[int, Field(ge=2)]
    start_timeout_seconds: Annotated[float, Field(gt=0)]
    image: Image
