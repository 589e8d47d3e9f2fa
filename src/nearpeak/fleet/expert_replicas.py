"""Copies of experts on several devices: where they lie, and which copy a batch uses.

While a batch is small, a device spends its time in a layer of experts on reading the weights of those that any token
chose: what counts is how many *distinct* experts it is asked for, and the layer waits for the device with the most.
An expert that lies on several devices can be asked for on any one of them. With ``H_e`` the devices that hold expert
``e``, a choice sends each activated expert to one of them:

    minimise  max_g  |{e : choice(e) = g}|     with  choice(e) in H_e

Zhang et al., "Janus: Disaggregating Attention and Experts for Scalable MoE Inference", 2025 (arXiv 2512.13525), choose
greedily in a kernel, once a layer and step: experts with the fewest copies first, each to the device that has the
fewest so far. Every device computes the same choice from the same routing, so nothing need be agreed on. ``optimum``
solves the integer program, by which the greedy choice is judged; ``at_random`` is what the choice is worth more than.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nearpeak.errors import NearpeakError, UsageError

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
SKEW = 1.2
"""Exponent of the power law of experts' loads that ``nearpeak.cost`` assumes of all mixtures."""


def popularity(experts: int, tokens: float, skew: float = SKEW) -> Array:
    """How often each expert is chosen relative to the others, ``[experts]``, the least popular first.

    Quantiles of the law that ``cost.operators.expert_loads`` prices: density ``x ** -skew`` between 1 and 0.8
    ``tokens``. ``skew`` 0: all alike.
    """
    if skew == 0:
        return np.ones(experts)
    power = 1.0 - (1.0001 if skew == 1 else skew)
    grown = max(0.8 * tokens, 1.0 + 1e-9) ** power - 1.0
    return np.asarray((1.0 + (np.arange(experts) + 0.5) / experts * grown) ** (1.0 / power))


def route(popular: Array, tokens: int, topk: int, draws: int, seed: int = 0) -> Ints:
    """Tokens that choose each expert, ``[draws, experts]``: every token draws ``topk`` different experts.

    Without replacement, with probabilities in proportion to ``popular`` (Gumbel's top-k).

    Raises:
        UsageError: ``topk`` is not between 1 and the experts, or there are no tokens or draws.
    """
    experts = popular.size
    if not 1 <= topk <= experts or tokens < 1 or draws < 1:
        raise UsageError(f"{tokens} tokens of {topk} experts of {experts}, {draws} draws: give 1 <= topk <= experts")
    random = np.random.default_rng(seed)
    logits = np.log(popular).astype(np.float32)
    found = np.zeros((draws, experts), np.int64)
    for counted in found:
        waits = random.standard_exponential((tokens, experts), dtype=np.float32)
        noisy = logits - np.log(np.maximum(waits, np.finfo(np.float32).tiny))
        chosen = np.argpartition(noisy, experts - topk, axis=1)[:, experts - topk :]
        counted[:] = np.bincount(chosen.ravel(), minlength=experts)
    return found


def place(load: Array, devices: int, slots: int) -> Mask:
    """Which device holds a copy of which expert, ``[experts, devices]``, at most ``slots`` on each.

    Copies go one by one to the expert with the most load a copy; then, the heaviest copy first, each to the device
    with the least load that has a free slot and holds none of its expert.

    Args:
        load: of each expert, ``[experts]``; not below 0.

    Raises:
        UsageError: there are fewer slots than experts.
    """
    if devices * slots < load.size:
        raise UsageError(f"{load.size} experts do not fit {devices} devices of {slots} slots: give more devices")
    return np.asarray(_place(np.maximum(load, 1e-9), devices, min(slots, load.size)))


def in_blocks(experts: int, devices: int) -> Mask:
    """One copy of each expert, neighbours together, ``[experts, devices]``: what engines do without copies."""
    return np.asarray(np.arange(experts)[:, None] * devices // experts == np.arange(devices))


def greedy(rows: Ints, hosts: Mask) -> Ints:
    """The device that serves each expert, ``[draws, experts]``; -1 for experts that no token chose.

    Experts with the fewest copies first, since they have no choice; among those the ones with the most tokens. Each
    goes to the device with the fewest activated experts, of these to that with the fewest tokens.

    Args:
        rows: tokens that chose each expert, ``[draws, experts]``. hosts: ``[experts, devices]``.
    """
    return np.asarray(_greedy(np.ascontiguousarray(rows), np.ascontiguousarray(hosts)))


def at_random(rows: Ints, hosts: Mask, seed: int = 0) -> Ints:
    """As ``greedy``, each activated expert at any one of its copies with equal chance."""
    random = np.random.default_rng(seed)
    drawn = np.where(hosts, random.random((*rows.shape, hosts.shape[1])), -1.0)
    return np.where(rows > 0, drawn.argmax(axis=-1), -1)


def optimum(rows: Ints, hosts: Mask) -> Ints:
    """As ``greedy``, with the least maximum there is: the integer program, by HiGHS.

    Raises:
        NearpeakError: the solver did not prove an optimum.
    """
    return np.stack([_solved(active > 0, hosts) for active in rows])


def activated(choice: Ints, devices: int) -> Ints:
    """Distinct experts that each device is asked for, ``[draws, devices]``."""
    return np.asarray((choice[..., None] == np.arange(devices)).sum(axis=1))


def carried(choice: Ints, rows: Ints, devices: int) -> Ints:
    """Tokens that each device multiplies, once for every expert, ``[draws, devices]``."""
    return np.asarray(((choice[..., None] == np.arange(devices)) * rows[..., None]).sum(axis=1))


def _solved(active: Mask, hosts: Mask) -> Ints:
    """Variables: one for each copy of an activated expert, and the maximum, which bounds every device's sum."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    experts, devices = np.nonzero(hosts & active[:, None])
    copies, count = experts.size, hosts.shape[1]
    once = np.unique(experts, return_inverse=True)[1]
    column = np.arange(copies)
    each = coo_array((np.ones(copies), (once, column)), shape=(int(active.sum()), copies + 1))
    sums = coo_array(
        (np.append(np.ones(copies), -np.ones(count)), (np.append(devices, np.arange(count)),
         np.append(column, np.full(count, copies)))), shape=(count, copies + 1),
    )  # fmt: skip
    answer = milp(
        np.append(np.zeros(copies), 1.0),
        constraints=(LinearConstraint(each, 1.0, 1.0), LinearConstraint(sums, -np.inf, 0.0)),
        integrality=np.ones(copies + 1),
        # No device can have fewer than an equal share.
        bounds=Bounds(np.append(np.zeros(copies), -(-active.sum() // count)), np.append(np.ones(copies), np.inf)),
    )
    if not answer.success:
        raise NearpeakError(f"HiGHS found no optimum for {copies} copies on {count} devices: {answer.message}")
    choice = np.full(active.size, -1)
    taken = answer.x[:copies] > 0.5
    choice[experts[taken]] = devices[taken]
    return choice


@njit(cache=True)
def _place(load: Array, devices: int, slots: int) -> Mask:
    experts = load.size
    copies = np.ones(experts, np.int64)
    for _ in range(devices * slots - experts):
        most = -1
        for e in range(experts):
            if copies[e] < devices and (most < 0 or load[e] / copies[e] > load[most] / copies[most]):
                most = e
        if most < 0:
            break
        copies[most] += 1
    hosts = np.zeros((experts, devices), np.bool_)
    held, weight = np.zeros(devices, np.int64), np.zeros(devices)
    left = copies.copy()
    for e in np.argsort(-load / copies, kind="mergesort"):
        while left[e] > 0:
            least = -1
            for g in range(devices):
                if held[g] < slots and not hosts[e, g] and (least < 0 or weight[g] < weight[least]):
                    least = g
            if least < 0:
                break
            hosts[e, least] = True
            held[least] += 1
            weight[least] += load[e] / copies[e]
            left[e] -= 1
    return hosts


@njit(cache=True)
def _greedy(rows: Ints, hosts: Mask) -> Ints:
    draws, experts = rows.shape
    devices = hosts.shape[1]
    copies = np.zeros(experts)
    for e in range(experts):
        copies[e] = hosts[e].sum()
    choice = np.full((draws, experts), -1, np.int64)
    for d in range(draws):
        count, tokens = np.zeros(devices, np.int64), np.zeros(devices, np.int64)
        for e in np.argsort(copies - rows[d] / (rows[d].max() + 1.0), kind="mergesort"):
            if rows[d, e] == 0:
                continue
            best = -1
            for g in range(devices):
                if hosts[e, g] and (
                    best < 0 or count[g] < count[best] or (count[g] == count[best] and tokens[g] < tokens[best])
                ):
                    best = g
            choice[d, e] = best
            count[best] += 1
            tokens[best] += rows[d, e]
    return choice
