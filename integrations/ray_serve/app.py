"""The application: fronts that speak HTTP, and replicas with a GPU each behind them.

serve run integrations.ray_serve.app:build model=tiny gpus=0 min_replicas=2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from integrations.ray_serve import options as reading
from integrations.ray_serve.front import Front
from integrations.ray_serve.replica import Replica

if TYPE_CHECKING:
    from ray.serve import Application


def build(arguments: Mapping[str, object]) -> Application:
    """The application with the options that Serve hands over (see ``options.py``). Raises OptionError."""
    from ray import serve

    options = reading.read(arguments)
    target = options.target_ongoing or options.max_batch
    replicas = serve.deployment(Replica).options(
        name="Replica",
        ray_actor_options={"num_gpus": options.gpus, "num_cpus": options.cpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.most_replicas,
            "target_ongoing_requests": target,
        },
        max_ongoing_requests=2 * options.max_batch,  # The next batch waits in the replica while one is generated.
        max_queued_requests=options.queue,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=options.timeout,
    )
    fronts = serve.deployment(Front).options(
        name="Front",
        num_replicas=options.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=options.queue + 2 * options.max_batch * options.most_replicas,
        graceful_shutdown_timeout_s=options.timeout,
    )
    return fronts.bind(replicas.bind(options), options)
