"""Buckets of request sizes, and the most requests/s of each that an instance serves within targets.

The rate is found where requests arrive at random and leave when they are done. An instance with ``n`` requests of one
size in flight completes ``mu(n)`` of them per second, all equally far: it is a queue with processor sharing, whose
number in flight does not depend on how lengths are distributed (Kelly 1979, "Reversibility and Stochastic Networks",
section 3.3)::

    P(n) ~ product over k = 1..n of  rate / mu(k)

A request that finds ``n`` runs with ``n + 1``. So at the most requests ``b`` whose time per token is within its target,
the rate may rise until the share of arrivals that find ``b`` or more reaches what is allowed to be late. (Griggs et
al. 2024 measure ``mu(b)`` itself under a constant load, at which the mean request just holds its target.)

``mu(n)`` is the rate of ``cost``'s steady state, in which prompts ride on decode steps. Where prompts are most of the
work that is more than full steps can take, and their rate is the limit.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.cost import mixed, platform_of, predict
from nearpeak.cost.engine import engine_on
from nearpeak.cost.serving import stage_seconds
from nearpeak.errors import UsageError
from nearpeak.setup import Setup
from nearpeak.topic import require_positive

Array = NDArray[np.float64]
ISL_EDGES = (25.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0, 32000.0)
OSL_EDGES = (25.0, 100.0, 250.0, 500.0, 1000.0, 2000.0)
"""Tokens between the buckets of the paper's evaluation; beyond the last there is one more."""
BUDGETS = 2 ** np.arange(13, 6, -1)
"""Tokens of a step that an engine may be told."""


@dataclass(frozen=True, eq=False)
class Buckets:
    """Request sizes that occur, arrays ``[buckets]``.

    Attributes:
        isl, osl: mean tokens of prompts and answers. longest: tokens of the longest request.
        rate: requests/s. of: bucket of each request ``[requests]``.
    """

    isl: Array
    osl: Array
    longest: NDArray[np.int64]
    rate: Array
    of: NDArray[np.int64]


def buckets(
    isl: ArrayLike, osl: ArrayLike, rate: float, isl_edges: ArrayLike = ISL_EDGES, osl_edges: ArrayLike = OSL_EDGES
) -> Buckets:
    """Sort requests (tokens ``[requests]``) that come at ``rate`` in all into buckets; empty ones are left out.

    Raises:
        UsageError: the rate or a length is not above 0, or edges do not ascend.
    """
    i, o = np.asarray(isl, float), np.asarray(osl, float)
    require_positive(isl=i, osl=o, rate=rate)
    at = []
    for name, tokens, edges in (("isl", i, isl_edges), ("osl", o, osl_edges)):
        cuts = np.atleast_1d(np.asarray(edges, float))
        if (np.diff(cuts) <= 0).any():
            raise UsageError(f"edges of {name} must ascend, not {', '.join(f'{x:g}' for x in cuts)}")
        at.append(np.searchsorted(cuts, tokens, "left"))
    _, of, count = np.unique(at[0] * (np.size(osl_edges) + 1) + at[1], return_inverse=True, return_counts=True)
    longest = np.zeros(count.size, np.int64)
    np.maximum.at(longest, of, (i + o).astype(np.int64))
    return Buckets(np.bincount(of, i) / count, np.bincount(of, o) / count, longest, rate * count / i.size, of)


def token_budget(setup: Setup, tpot: float, isl: float) -> int:
    """Most tokens of a step that takes no longer than ``tpot``; the least that an engine may be told where none does.

    Agrawal et al. 2024 (Sarathi-Serve) size it so: then no prompt makes those who decode beside it wait for longer.
    ``isl``: tokens of a long prompt, whose last chunk sees all before it.
    """
    size = np.asarray(BUDGETS, float)
    step = mixed(
        platform_of(setup),
        setup,
        setup.decode,
        np.ones(()),
        size,
        np.maximum(isl - size, 0.0),
        np.zeros(()),
        np.ones(()),
    )
    seconds = stage_seconds(setup, engine_on(setup.engine, setup.node), step.total)
    return int(BUDGETS[np.argmax(seconds <= tpot)]) if (seconds <= tpot).any() else int(BUDGETS[-1])


def served_rate(pace: Array, allowed: NDArray[np.int64], late: float) -> Array:
    """The rate at which a share ``late`` of arrivals finds ``allowed`` or more in flight, ``[buckets]``.

    Args:
        pace: requests/s completed with ``n = 1..N`` in flight, ``[buckets, N]``; with more they wait, at the last.
        allowed: ``[buckets]``, 0 for none: then the rate is 0.
    """
    log_pace = np.log(pace)
    served = np.concatenate([np.zeros((len(pace), 1)), np.cumsum(log_pace, axis=1)], axis=1)
    number = np.arange(served.shape[1])
    beyond = number >= allowed[:, None]
    low, high = log_pace.min(1) - 20.0, log_pace[:, -1].copy()
    for _ in range(60):
        middle = (low + high) / 2
        weight = number * middle[:, None] - served
        weight = np.exp(weight - weight.max(1, keepdims=True))
        # More than N in flight: a geometric series after the last.
        weight[:, -1] /= -np.expm1(np.minimum(middle - log_pace[:, -1], -1e-12))
        good = (weight * beyond).sum(1) <= late * weight.sum(1)
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return np.where(allowed > 0, np.exp(low), 0.0)


def most_rates(setup: Setup, sizes: Buckets, tpot: float, ttft: float, late: float, most: int) -> Array:
    """Requests/s of each bucket that one instance serves, ``[buckets]``; 0 where even one alone misses a target.

    Args:
        setup: the instance; its lengths and batch are not read. tpot, ttft: targets in seconds; infinite for none.
        late: share of requests that may miss them. most: requests that an engine runs at once.
    """
    batch = np.unique(np.rint(np.geomspace(1, most, min(most, 96))))
    own = replace(
        setup, isl=sizes.isl[:, None], osl=sizes.osl[:, None], decode=replace(setup.decode, batch=batch[None])
    )
    found = predict(platform_of(own), own)
    shape = (sizes.isl.size, batch.size)
    fits, free = np.broadcast_to(found.fits, shape), np.broadcast_to(found.request_rate, shape)
    rate = np.minimum(free, _most_by_tokens(setup, sizes)[:, None])
    # What a request takes longer than its steps alone, it waits for its prompt's turn.
    wait = batch / rate - batch / free
    good = fits & np.broadcast_to((found.tpot <= tpot) & (found.ttft + wait <= ttft), shape)
    every, held = np.arange(1, most + 1), _first(fits)
    pace = np.array([np.interp(every, batch[: max(n, 1)], row[: max(n, 1)]) for n, row in zip(held, rate, strict=True)])
    allowed = np.append(0, batch)[_first(good)].astype(np.int64)
    room = setup.model.context or np.inf
    return np.where(sizes.longest <= room, served_rate(pace, allowed, late), 0.0)


def _most_by_tokens(setup: Setup, sizes: Buckets) -> Array:
    """Requests/s whose tokens full steps can take: no step takes less time for each token than a full one."""
    budget = float(np.asarray(setup.chunk))
    size = np.minimum(sizes.isl, budget)
    prompts = np.maximum(1.0, np.floor(budget / sizes.isl))
    step = mixed(
        platform_of(setup), setup, setup.decode, prompts, size, (sizes.isl - size) / 2, np.zeros(()), np.ones(())
    )
    seconds = stage_seconds(setup, engine_on(setup.engine, setup.node), step.total)
    return np.asarray(prompts * size / (seconds * (sizes.isl + sizes.osl - 1)))


def _first(good: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many of a row are true before the first that is not."""
    return np.asarray(np.cumprod(good, axis=1).sum(1))
