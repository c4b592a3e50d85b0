"""Recipes of `oacir submit` and `oacir jobs`: which cluster, what goes along, what it may cost."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from infra.base.config import Config
from infra.base.logs import SECRET_NAME

Price = Annotated[float, Field(ge=0)]


class EnvironmentSection(Config):
    """Where the job's packages come from."""

    kind: Literal["none", "pip", "uv"] = "none"
    """none: the cluster's machines have them; pip or uv: Ray installs what this package requires, once for each
    machine, and keeps it."""
    packages: tuple[str, ...] = ()
    """Further requirements, as pip writes them (open-clip-torch==2.32.0); only with pip or uv."""
    constraints: str | None = None
    """A constraints file that pins the versions; null takes constraints.txt of this package's checkout, where there is
    one. Only with pip or uv."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "none" and (self.packages or self.constraints):
            raise ValueError("packages and constraints have an effect only with kind pip or uv")
        return self


class PricesSection(Config):
    """What an hour costs, to tell the money beforehand."""

    cpu_hour: Price | None = None
    """Price of a CPU for an hour; null = not known, and no money is told of work on CPUs."""
    gpu_hour: Price | None = None
    """Price of a GPU for an hour, its machine's CPUs included or not as you count them; null = not known."""
    currency: str = "USD"
    """What prices are in."""


class ClusterRecipe(Config):
    """Which cluster is asked."""

    address: str | None = None
    """Its dashboard, http://HOST:8265; null takes RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then
    http://127.0.0.1:8265."""


class SubmitRecipe(ClusterRecipe):
    """How a command is sent; the command with its own options comes after these."""

    follow: bool = True
    """Show the job's log until it ends, and exit with its code; false returns once it is submitted."""
    estimate: bool = True
    """Ask the command's own dry run, on this machine, how long it will take; it needs the data to be seen from here."""
    estimate_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds that the dry run has before the job is submitted without it."""
    expected_hours: Price | None = None
    """Hours you expect, for the money; null takes what the dry run tells."""
    environment: EnvironmentSection = Field(default_factory=EnvironmentSection)
    """The packages."""
    prices: PricesSection = Field(default_factory=PricesSection)
    """The price table."""
    include: tuple[str, ...] = ()
    """Files and folders below the working directory that go along and lie at the same relative path there."""
    limit_mib: Annotated[float, Field(gt=0)] = 64.0
    """What goes along may not be larger; data belongs on S3."""
    variables: tuple[str, ...] = ()
    """Further variables of this environment that the job gets; never secrets, which the cluster's machines have."""
    python: str = "python"
    """The interpreter there."""
    driver_cpus: Annotated[float, Field(ge=0)] = 0.0
    """CPUs that Ray reserves for the command itself; with 0 it runs beside Ray's own processes on the head."""
    stop_s: Annotated[int, Field(gt=0)] = 300
    """Seconds that a job which is stopped has for an orderly end (a training saves a step) before it is killed."""

    @field_validator("variables")
    @classmethod
    def _no_secrets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        secret = [name for name in names if SECRET_NAME.search(name)]
        if secret:
            raise ValueError(
                f"{', '.join(secret)}: by its name a secret, and whoever sees the dashboard sees a job's variables;"
                " give it to the cluster's machines (an instance role, a Kubernetes secret)"
            )
        return names


class ListRecipe(ClusterRecipe):
    """Jobs of a cluster."""

    all: bool = False
    """Also jobs that other programs submitted."""


class JobRecipe(ClusterRecipe):
    """One job."""

    job: str | None = None
    """Its id, or the beginning of it; null takes the newest that `oacir submit` sent."""


class LogsRecipe(JobRecipe):
    """A job's log."""

    follow: bool = False
    """Go on until the job ends, and exit with its code."""


class StopRecipe(JobRecipe):
    """The end of a job."""

    wait_s: Annotated[float, Field(gt=0)] = 330.0
    """Seconds to wait until it has ended."""
