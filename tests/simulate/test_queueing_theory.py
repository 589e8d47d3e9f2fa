"""The simulator against queues whose waiting times are known exactly (Kleinrock, Queueing Systems, volume 1).

A request is served alone for its answer's tokens, one step each: with one server it is M/G/1 to the last digit. With
several servers a request begins at the next step, a thousandth of its service.
"""

import math

import numpy as np
import pytest

from nearpeak.simulate.policies import policy
from nearpeak.simulate.serving import Deployment, Instances, feed, serve
from nearpeak.simulate.steps import constant_table

REQUESTS = 1_000_000
STEP = 1e-3


def waits(rate: float, tokens: np.ndarray, servers: int, seed: int) -> float:
    """Mean seconds that requests wait."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1 / rate, len(tokens)))
    table = constant_table(STEP, servers, STEP)
    queue = Deployment(table, (Instances(0, 1, servers, 1 << 40),), policy("iteration-level"))
    result = serve(queue, feed(arrival, np.ones_like(tokens), tokens), keep=True)
    assert result.requests is not None
    assert result.completed == len(tokens)
    return float(np.mean(result.requests["latency"] - tokens * STEP))


def drawn(kind: str, rng: np.random.Generator) -> np.ndarray:
    match kind:
        case "exponential":
            return rng.geometric(1e-3, REQUESTS)
        case "constant":
            return np.full(REQUESTS, 1000)
        case "two-point":
            return rng.choice([200, 5000], REQUESTS, p=[5 / 6, 1 / 6])
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["exponential", "constant", "two-point"])
def test_one_server_waits_as_pollaczek_and_khinchine_say(kind: str) -> None:
    tokens = drawn(kind, np.random.default_rng(3))
    service = tokens * STEP
    rate = 0.5 / service.mean()
    exact = rate * np.mean(service**2) / (2 * (1 - 0.5))
    assert waits(rate, tokens, 1, seed=4) == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("servers", [2, 8])
def test_many_servers_wait_as_erlang_says(servers: int) -> None:
    load, ratios = 0.6, []
    for seed in (1, 2, 3):  # a million arrivals leave some 0.8 % of noise with eight servers
        tokens = drawn("exponential", np.random.default_rng(seed))
        offered = load * servers
        terms = [offered**k / math.factorial(k) for k in range(servers)]
        last = offered**servers / math.factorial(servers) / (1 - load)
        mean = float(np.mean(tokens)) * STEP
        exact = last / (sum(terms) + last) * mean / (servers * (1 - load))
        # A request that finds a server free still begins at the next step.
        ratios.append(waits(offered / mean, tokens, servers, seed + 100) / (exact + STEP / 2))
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)
