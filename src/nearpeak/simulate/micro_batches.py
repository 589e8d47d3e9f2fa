"""What micro-batches a policy makes of prompts and answers that go round a pipeline, and what a pass of each takes.

Requests live in as many groups as the pipeline has stages, each with so many slots. One iteration of a group is one
micro-batch; a group's next iteration begins when its last one has left the pipeline, so that the groups take turns.
Which tokens meet in a micro-batch does not depend on how long the ones before it took. So all of them are composed
first (by the rules of ``policies``), then priced in one call (``cost.mixed``), then sent through the stages
(``pipeline.flow``).
"""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.cost import decode, mixed, platform_of, prefill
from nearpeak.cost.platform import Platform
from nearpeak.errors import UsageError
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.policies import Policy, compose
from nearpeak.topic import require_positive
from nearpeak.workload.traffic import Requests

Array = NDArray[np.float64]
Count = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MicroBatches:
    """Iterations in the order in which they enter the pipeline, arrays ``[iterations]``.

    Attributes:
        prompts, prefilled, prefix: prompts in it, tokens of them, and tokens of them that were in the cache before.
        decoding, context: requests that decode, and tokens in their caches together.
        previous: the iteration of the same group before this one, -1 for none.
        first, last: of each request ``[requests]``: the iterations that it came in with and that ended it.
    """

    prompts: Count
    prefilled: Count
    prefix: Count
    decoding: Count
    context: Count
    previous: Count
    first: Count
    last: Count

    @property
    def tokens(self) -> Count:
        """That go through the matrices together."""
        return self.prefilled + self.decoding


def micro_batches(policy: Policy, requests: Requests, groups: int, slots: int) -> MicroBatches:
    """Iterations of ``groups`` groups of at most ``slots`` requests each, all requests being there from the start.

    Raises:
        UsageError: a size is below 1.
    """
    require_positive(groups=groups, slots=slots)
    return MicroBatches(*_rounds(policy.code, policy.budget, policy.tile, requests.isl, requests.osl, groups, slots))


@njit(cache=True)
def _rounds(
    code: int, budget: int, tile: int, isl: Count, osl: Count, groups: int, slots: int
) -> tuple[Count, Count, Count, Count, Count, Count, Count, Count]:
    n = isl.size
    first, last = np.zeros(n, np.int64), np.zeros(n, np.int64)
    done, made = np.zeros(n, np.int64), np.zeros(n, np.int64)  # of each request: prompt tokens in its cache, its answer
    held = np.full((groups, slots), -1)  # requests of a group in the order in which they came
    count, before = np.zeros(groups, np.int64), np.full(groups, -1)
    waiting = np.empty(slots, np.int64)
    left, take = np.empty(slots, np.int64), np.empty(slots, np.int64)
    prompts, prefilled, prefix, decoding, context, previous = [0], [0], [0], [0], [0], [0]
    arrived, ended, turn, iteration = 0, 0, 0, 0
    while ended < n:
        g = turn % groups
        turn += 1
        while count[g] < slots and arrived < n:
            held[g, count[g]] = arrived
            count[g] += 1
            arrived += 1
        if count[g] == 0:
            continue
        new, old, seen = 0, 0, 0
        for begun in (True, False):  # begun prompts before others
            for i in range(count[g]):
                r = held[g, i]
                if done[r] < isl[r] and (done[r] > 0) == begun:
                    waiting[new], left[new] = r, isl[r] - done[r]
                    new += 1
            if begun:
                started = new
        for i in range(count[g]):
            r = held[g, i]
            if done[r] == isl[r]:
                old += 1
                seen += isl[r] + made[r]
        decodes = compose(code, old, left[:new], started, budget, tile, take[:new])
        if decodes:
            for i in range(count[g]):
                r = held[g, i]
                if done[r] == isl[r]:
                    made[r] += 1
        parts, tokens, cached = 0, 0, 0
        for i in range(new):
            if take[i] > 0:
                r = waiting[i]
                if done[r] == 0:
                    first[r] = iteration
                parts, tokens, cached = parts + 1, tokens + take[i], cached + done[r]
                done[r] += take[i]
                if done[r] == isl[r]:
                    made[r] += 1
        kept = 0
        for i in range(count[g]):
            r = held[g, i]
            if made[r] == osl[r]:
                last[r] = iteration
                ended += 1
            else:
                held[g, kept] = r
                kept += 1
        count[g] = kept
        if parts == 0 and not (decodes and old):
            continue
        prompts.append(parts)
        prefilled.append(tokens)
        prefix.append(cached)
        decoding.append(old if decodes else 0)
        context.append(seen if decodes else 0)
        previous.append(before[g])
        before[g] = iteration
        iteration += 1
    return (
        np.array(prompts)[1:],
        np.array(prefilled)[1:],
        np.array(prefix)[1:],
        np.array(decoding)[1:],
        np.array(context)[1:],
        np.array(previous)[1:],
        first,
        last,
    )


def pass_seconds(setup: Setup, made: MicroBatches) -> Array:
    """Seconds ``[iterations]`` of each micro-batch in all the layers of a pool, were they on one stage.

    Several prompts count as so many of their mean length. Kernels and tensor parallelism count, the host does not.
    """
    at, whole = platform_of(setup), replace(setup.decode, pp=1)
    seconds = np.empty(made.prompts.size)
    prompts, decoding = made.prompts.astype(float), made.decoding.astype(float)
    several = np.maximum(prompts, 1)
    chunk, prefix, context = made.prefilled / several, made.prefix / several, made.context / np.maximum(decoding, 1)
    for only in (prompts > 0) & (decoding > 0), (prompts > 0) & (decoding == 0), prompts == 0:
        if not only.any():
            continue
        if prompts[only].any():
            step = mixed(
                at, setup, whole, prompts[only], chunk[only], prefix[only], decoding[only], context[only]
            )  # fmt: skip
        else:
            step = decode(at.in_graph(), setup, whole, decoding[only], context[only])
        seconds[only] = step.total
    return seconds


def stage_seconds(setup: Setup, passes: Array) -> Array:
    """Seconds ``[jobs, stages]`` of passes ``[jobs]`` through all layers, cut into the stages of ``setup.decode``.

    A stage has its share of the layers; where they do not divide, the first ones have one more. The embedding and the
    head count as spread alike, as engines do that give the last stage fewer layers for it.

    Raises:
        UsageError: there are more stages than layers.
    """
    stages, layers = int(setup.decode.pp), setup.model.layers
    if not 1 <= stages <= layers:
        raise UsageError(f"stages must be 1 to {layers}, the layers of {setup.model.name}, not {stages}")
    own = np.full(stages, layers // stages) + (np.arange(stages) < layers % stages)
    return np.asarray(passes[:, None] * own / layers)


def hop_seconds(at: Platform, setup: Setup, tokens: Count) -> Array:
    """Seconds ``[jobs]`` that the activations of so many tokens take from one stage to the next."""
    stages = int(setup.decode.pp)
    if stages == 1:
        return np.zeros(tokens.size)
    rows, where = np.unique(tokens, return_inverse=True)

    def said(pool: Pool) -> Array:
        return prefill(at, setup, pool, np.ones(()), rows.astype(float)).communication

    each: Array = (said(setup.decode) - said(replace(setup.decode, pp=1))) / (stages - 1)
    return each[where]
