"""What ``serve run integrations.ray_serve.app:build NAME=VALUE ...`` and a Serve config file may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from foundation.errors import ArcFlowError

_NAME = re.compile(r"[^,/=\s]+")
_Count = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class OptionError(ArcFlowError):
    """An option of the application is wrong; the message says which."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of the application.

    model, precision, target, host, threads: as :meth:`runtime.pipeline.Pipeline.open` takes them.
    gpus: of each replica; 0 for the CPU. cpus: cores that Ray sets aside for each replica.
    min_replicas, max_replicas, target_ongoing: autoscaling; as many requests a replica, and Serve adds one.
    max_batch: requests joined in a replica, at most the bundle's batch. batch_wait_ms: how long to wait for others.
    queue: requests that may wait at a front; more get 429. timeout: most seconds of a request.
    retries: how often a request whose replica died is given to another one. fronts: replicas that speak HTTP.
    max_body: bytes of a request. aliases: other names for the model, with commas between them.
    """

    model: str = "tiny"
    precision: str | None = None
    target: str | None = None
    host: Literal["python", "native"] = "python"
    threads: _Count | None = None
    gpus: Annotated[float, msgspec.Meta(ge=0, le=64)] = 1
    cpus: Annotated[float, msgspec.Meta(ge=0, le=1024)] = 1
    min_replicas: _Count = 1
    max_replicas: _Count | None = None
    target_ongoing: Annotated[float, msgspec.Meta(gt=0, le=1024)] | None = None
    max_batch: _Count = 8
    batch_wait_ms: Annotated[float, msgspec.Meta(ge=0, le=1000)] = 2
    queue: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60
    retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 3
    fronts: _Count = 1
    max_body: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 1 << 20
    aliases: str = ""

    @property
    def most_replicas(self) -> int:
        """max_replicas, or as many as there are at least."""
        return self.max_replicas or self.min_replicas

    @property
    def names(self) -> tuple[str, ...]:
        """The aliases one by one."""
        return tuple(self.aliases.split(",")) if self.aliases else ()


def read(arguments: Mapping[str, object]) -> Options:
    """The options that Serve hands over; from a command line all are text. Raises OptionError."""
    try:
        options = msgspec.convert(dict(arguments), Options, strict=False)
    except msgspec.ValidationError as error:
        names = ", ".join(Options.__struct_fields__)
        raise OptionError(f"options of integrations.ray_serve: {error}; there are {names}") from error
    if options.most_replicas < options.min_replicas:
        raise OptionError(
            f"max_replicas is {options.max_replicas}; it must be at least min_replicas, which is {options.min_replicas}"
        )
    if not all(_NAME.fullmatch(name) for name in options.names):
        raise OptionError(
            f"aliases is '{options.aliases}'; it must be names with a comma between two, without spaces, / and =, "
            "like gpt-image-1,dall-e-3"
        )
    return options
