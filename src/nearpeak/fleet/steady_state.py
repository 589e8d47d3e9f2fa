"""What a deployment does in the steady state of a closed loop: served by events, without its filling and draining."""

from dataclasses import dataclass

import numpy as np

from nearpeak.setup import Setup
from nearpeak.simulate.serving import Deployment, feed, serve
from nearpeak.workload.traffic import Constant, LogNormal, Traffic

WARM = (0.25, 0.75)
"""Between these shares of the requests completed, the loop is neither filling nor draining."""
FEWEST = 512
"""Requests of a run, at least."""


@dataclass(frozen=True)
class Run:
    """Output tokens/s and requests/s of all instances, median TPOT and latency of a request in seconds."""

    token_rate: float
    request_rate: float
    tpot: float
    latency: float


def closed_loop(
    deployment: Deployment, traffic: Traffic, clients: int | None = None, rounds: int = 12, seed: int = 0
) -> Run:
    """Keep ``clients`` requests in flight, ``rounds`` requests of each in all; as many as run at once if None."""
    clients = clients or sum(one.count * one.most for one in deployment.instances)
    asked = traffic.sample(max(rounds * clients, FEWEST), seed)
    found = serve(deployment, feed(asked.arrival, asked.isl, asked.osl), clients=clients, seed=seed, keep=True)
    done = found.requests
    assert done is not None
    order = np.argsort(done["finish"], kind="stable")
    first, last = (int(share * (order.size - 1)) for share in WARM)
    middle = order[first + 1 : last + 1]
    span = float(done["finish"][order[last]] - done["finish"][order[first]])
    return Run(
        float(done["osl"][middle].sum()) / span,
        middle.size / span,
        float(np.median(done["tpot"][middle])),
        float(np.median(done["latency"][middle])),
    )


def lengths(setup: Setup, spread: float) -> Traffic:
    """Requests of a Setup's mean lengths that deviate by ``spread`` of them."""
    means = float(np.asarray(setup.isl)), float(np.asarray(setup.osl))
    isl, osl = (Constant(round(mean)) if spread == 0 else LogNormal(mean, spread) for mean in means)
    return Traffic(isl, osl)
