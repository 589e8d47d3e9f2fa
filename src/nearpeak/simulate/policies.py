"""Policies of a serving engine: what of the waiting prompts a step takes, and whether running requests decode in it.

A policy is a small function over counts and arrays. The simulator's compiled loop and the live engine of
``nearpeak.decode`` call the same ones. They know nothing of time or memory: the engine offers the prompts that it has
room for, in the order in which they are to be served, and the policy says how many tokens of each the next step takes::

    policy(decoding, left, started, budget, tile, take) -> decodes

``decoding``: tokens that the running requests would put into the step. ``left``: tokens of each prompt that are still
to be prefilled, ``[prompts]``, those of the first ``started`` begun before. ``budget``: most tokens of a step.
``tile``: tokens that kernels work on at a time. ``take``: where it writes the tokens of each prompt, ``[prompts]``.
It returns whether the running requests decode in this step; where it returns False and takes nothing, the engine rests.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UnknownName, UsageError
from nearpeak.simulate.compiled import compiled

Tokens = NDArray[np.int64]
Rule = Callable[[int, Tokens, int, int, int, Tokens], bool]


@compiled
def stall_free(decoding: int, left: Tokens, started: int, budget: int, tile: int, take: Tokens) -> bool:
    """All running requests decode; what the budget leaves goes to begun prompts, then to new ones, in parts.

    Agrawal et al. 2024, "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve", algorithm 3; vLLM's
    scheduler since its version 1.
    """
    room = budget - decoding
    for i in range(left.size):
        take[i] = max(0, min(left[i], room))
        room -= take[i]
    return True


@compiled
def piggyback(decoding: int, left: Tokens, started: int, budget: int, tile: int, take: Tokens) -> bool:
    """A part of one prompt, and all running requests on its back; together they fill whole tiles.

    Agrawal et al. 2023, "SARATHI: Efficient LLM Inference by Piggybacking Decodes with Chunked Prefills", section 4.
    """
    take[:] = 0
    if left.size:
        room = max(budget, decoding + 1) // tile * tile - decoding
        take[0] = min(left[0], room if room > 0 else max(1, budget - decoding))
    return True


@compiled
def prefill_first(decoding: int, left: Tokens, started: int, budget: int, tile: int, take: Tokens) -> bool:
    """Whole prompts before everything, as many as the budget holds and at least one; the others pause meanwhile.

    Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention": vLLM before
    its version 1.
    """
    room = budget
    for i in range(left.size):
        take[i] = left[i] if i == 0 or left[i] <= room else 0
        room = room - take[i] if take[i] else 0
    return left.size == 0


@compiled
def iteration_level(decoding: int, left: Tokens, started: int, budget: int, tile: int, take: Tokens) -> bool:
    """Whole prompts beside the running requests, as many as the budget holds and at least one.

    Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", section 3.1.
    """
    room = budget - decoding
    for i in range(left.size):
        take[i] = left[i] if i == 0 or left[i] <= room else 0
        room = room - take[i] if take[i] else 0
    return True


@compiled
def request_level(decoding: int, left: Tokens, started: int, budget: int, tile: int, take: Tokens) -> bool:
    """New prompts only when the whole batch before them has ended: dynamic batching, as in FasterTransformer."""
    for i in range(left.size):
        take[i] = left[i] if decoding == 0 else 0
    return decoding > 0


@compiled
def temporal_fusion(decoding: int, left: Tokens, started: int, budget: int, tile: int, take: Tokens) -> bool:
    """One prompt by itself as soon as it is there; then its request joins the one running decode loop.

    Yang et al. 2023, "Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference".
    """
    take[:] = 0
    if left.size:
        take[0] = left[0]
    return left.size == 0


RULES: tuple[Rule, ...] = (stall_free, piggyback, prefill_first, iteration_level, request_level, temporal_fusion)
"""In the order of their codes."""


@compiled
def compose(code: int, decoding: int, left: Tokens, started: int, budget: int, tile: int, take: Tokens) -> bool:
    """The policy of this code (its place in ``RULES``): the compiled loop's way to swap them."""
    if code == 0:
        return stall_free(decoding, left, started, budget, tile, take)
    if code == 1:
        return piggyback(decoding, left, started, budget, tile, take)
    if code == 2:
        return prefill_first(decoding, left, started, budget, tile, take)
    if code == 3:
        return iteration_level(decoding, left, started, budget, tile, take)
    if code == 4:
        return request_level(decoding, left, started, budget, tile, take)
    return temporal_fusion(decoding, left, started, budget, tile, take)


@dataclass(frozen=True)
class Policy:
    """A rule and its sizes.

    Attributes:
        name: as a person writes it. rule: the function. paper: where it comes from.
        budget: most tokens of a step. tile: tokens that kernels work on at a time.
    """

    name: str
    rule: Rule
    paper: str
    budget: int = 8192
    tile: int = 1

    @property
    def code(self) -> int:
        """Of its rule, for ``compose``."""
        return RULES.index(self.rule)


POLICIES = {
    p.name: p
    for p in (
        Policy("stall-free", stall_free, "Agrawal et al. 2024 (Sarathi-Serve)"),
        Policy("piggyback", piggyback, "Agrawal et al. 2023 (SARATHI)", 512, 128),
        Policy("prefill-first", prefill_first, "Kwon et al. 2023 (vLLM before version 1)"),
        Policy("iteration-level", iteration_level, "Yu et al. 2022 (Orca)"),
        Policy("request-level", request_level, "FasterTransformer's dynamic batching"),
        Policy("temporal-fusion", temporal_fusion, "Yang et al. 2023 (Flover)"),
    )
}


def policy(name: str, **sizes: Any) -> Policy:  # noqa: ANN401 (budget, tile: whole numbers)
    """The policy of a name, with other sizes than its own where given (None: its own).

    Raises:
        UnknownName: there is no such policy.
        UsageError: a size is below 1.
    """
    if name not in POLICIES:
        raise UnknownName("policy", name, POLICIES)
    given = {key: value for key, value in sizes.items() if value is not None}
    for key, value in given.items():
        if value < 1:
            raise UsageError(f"{key} {value} of policy {name}; give a whole number of at least 1")
    return replace(POLICIES[name], **given)
