"""Hamiltonian Monte Carlo whose chains run together as rows of one array.

A draw ``q`` with momentum ``p ~ N(0, I)`` follows the leapfrog steps ``p += e/2 grad; q += e p; p += e/2 grad`` for a
time ``t`` and is accepted with probability ``min(1, exp(H - H'))``. Everything that a person would tune is learned in
the warm-up and then frozen:

- the step ``e`` by stochastic approximation of the acceptance wanted, of which the chains' harmonic mean is taken;
- the trajectory ``T`` by ascent of the chains' expected change of squared distance from their centre, ChEES
  (Hoffman, Radul and Sountsov, An Adaptive MCMC Scheme for Setting Trajectory Lengths, AISTATS 2021); each transition
  goes ``h T`` far with ``h`` a van der Corput number, so that no period of the density is met again and again;
- a scale for each dimension from the chains' pooled variance.

All chains take equally many steps, so a transition is a handful of array operations whatever the number of chains. Give
it 8 or more: they are what the adaptation learns from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError

Array = NDArray[np.float64]
Density = Callable[[Array], tuple[Array, Array]]
"""Rows ``[chains, d]`` to log density ``[chains]``, up to a constant, and its gradient ``[chains, d]``."""

DIVERGENT = 1000.0
"""Error of the energy from which on a trajectory has left the density (Betancourt 2017)."""


@dataclass(frozen=True)
class Exploration:
    """What the chains drew after their warm-up.

    Attributes:
        draws: ``[chains, draws, d]``. acceptance: mean probability of acceptance.
        divergences: transitions whose energy error was beyond ``DIVERGENT``. step: of a leapfrog, in units of
            ``scale [d]``. time: mean length of a trajectory is half of it.
    """

    draws: Array
    acceptance: float
    divergences: int
    step: float
    time: float
    scale: Array


def _trajectory(
    density: Density, q: Array, value: Array, gradient: Array, p: Array, step: float, count: int, scale: Array
) -> tuple[Array, Array, Array, Array]:
    """``count`` leapfrog steps from ``q`` with momentum ``p`` in the coordinates ``q / scale``."""
    p = p + 0.5 * step * scale * gradient
    for i in range(count):
        q = q + step * scale * p
        value, gradient = density(q)
        p = p + (0.5 if i == count - 1 else 1.0) * step * scale * gradient
    return q, value, gradient, p


def explore(
    density: Density,
    start: Array,
    draws: int,
    warmup: int,
    seed: int,
    acceptance: float = 0.8,
    most_steps: int = 512,
) -> Exploration:
    """Sample a density with chains in lockstep.

    Args:
        density: rows to log density and gradient; a value that is not finite is a place of no probability.
        start: ``[chains, d]``, finite density each; best spread wider than the posterior.
        draws, warmup: transitions of each chain that are kept, and before them.
        seed: same seed, same draws. acceptance: that the step is tuned for. most_steps: leapfrogs of a transition.

    Raises:
        UsageError: ``start`` is no matrix, a chain starts where the density is not finite, or counts are too small.
    """
    q = np.array(start, float)
    if q.ndim != 2 or not len(q):
        raise UsageError(f"start must be [chains, d], not {q.shape}")
    if draws < 1 or warmup < 20:
        raise UsageError(f"take 1 draw or more after 20 transitions of warm-up or more, not {draws} after {warmup}")
    value, gradient = density(q)
    lost = ~(np.isfinite(value) & np.isfinite(gradient).all(axis=1))
    if lost.any():
        raise UsageError(f"chain {int(np.argmax(lost))} starts where the log density or its gradient is not finite")
    rng = np.random.default_rng(seed)
    chains, width = q.shape
    scale = np.ones(width)
    step = _first_step(density, q, value, gradient, rng)
    tuner = _Step(step, acceptance)
    log_time, second, mean_log_time = float(np.log(step)), 0.0, float(np.log(step))
    refresh = {int(warmup * share) for share in (0.1, 0.2, 0.35, 0.55, 0.8)}
    since: list[Array] = []
    scaled = False
    kept = np.empty((draws, chains, width))
    accepted, divergences, halton = 0.0, 0, _van_der_corput(warmup + draws)
    for turn in range(warmup + draws):
        warm = turn < warmup
        if turn == warmup:
            step, log_time = tuner.final, mean_log_time
        time = halton[turn] * np.exp(log_time)
        count = int(np.clip(np.ceil(time / step), 1, most_steps))
        p = rng.standard_normal(q.shape)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            q_new, value_new, gradient_new, p_new = _trajectory(density, q, value, gradient, p, step, count, scale)
            energy = value_new - value + 0.5 * ((p**2).sum(axis=1) - (p_new**2).sum(axis=1))
        whole = np.isfinite(energy) & np.isfinite(gradient_new).all(axis=1)
        energy = np.where(whole, energy, -np.inf)
        chance = np.exp(np.minimum(energy, 0.0))
        take = rng.random(chains) < chance
        if warm:
            log_time, second = _lengthen(
                log_time, second, turn, time, q / scale, np.where(whole[:, None], q_new, q) / scale,
                np.where(whole[:, None], p_new, 0.0), chance, step * most_steps,
            )  # fmt: skip
            weight = max(turn, 1) ** -0.5
            mean_log_time += weight * (log_time - mean_log_time)
            step = tuner.update(chance)
        else:
            accepted += chance.mean() / draws
            divergences += int((energy < -DIVERGENT).sum())
        q = np.where(take[:, None], q_new, q)
        gradient = np.where(take[:, None], gradient_new, gradient)
        value = np.where(take, value_new, value)
        if warm:
            since.append(q)
            if turn in refresh and len(since) * chains >= 20:
                scale, ratio = _scale(np.concatenate(since)), scale
                # In the new units no dimension is shorter than 1: the step may grow as far as the shortest one did.
                step *= float(np.max(ratio / scale))
                tuner = _Step(step, acceptance)
                if not scaled:  # From here on half a period of a Gaussian is pi.
                    log_time = mean_log_time = float(np.log(np.pi))
                scaled = True
                since = []
        else:
            kept[turn - warmup] = q
    return Exploration(kept.transpose(1, 0, 2), accepted, divergences, float(step), float(np.exp(log_time)), scale)


def sample(density: Density, start: Array, draws: int, warmup: int, seed: int) -> Array:
    """The draws ``[chains, draws, d]`` of ``explore``."""
    return explore(density, start, draws, warmup, seed).draws


def _scale(points: Array) -> Array:
    """Standard deviation by dimension, drawn a little to a small one while points are few, as Stan does."""
    n = len(points)
    return np.asarray(np.sqrt(n / (n + 5) * points.var(axis=0) + 1e-3 * 5 / (n + 5)))


def _lengthen(
    log_time: float, second: float, turn: int, time: float, q: Array, q_new: Array, p_new: Array, chance: Array,
    longest: float,
) -> tuple[float, float]:  # fmt: skip
    """One step of Adam (no momentum) up the ChEES criterion; the length stays within what may be walked."""
    weight = chance / max(chance.sum(), 1e-30)
    before, after = q - q.mean(axis=0), q_new - (weight[:, None] * q_new).sum(axis=0)
    grown = (after**2).sum(axis=1) - (before**2).sum(axis=1)
    slope = float((weight * grown * (after * p_new).sum(axis=1)).sum()) * time
    if not np.isfinite(slope):
        return log_time, second
    second = 0.95 * second + 0.05 * slope**2
    unbiased = second / (1 - 0.95 ** (turn + 1))
    log_time += 0.025 * slope / (np.sqrt(unbiased) + 1e-30)
    return float(min(log_time, np.log(longest))), second


class _Step:
    """Stochastic approximation of the step that reaches a wanted acceptance; its running mean is what is kept.

    Chains that share a step are refused together when it passes the edge of stability, so that
    dual averaging with its usual constants swings by factors; here a transition moves it by a bounded, shrinking share.
    """

    def __init__(self, step: float, target: float) -> None:
        self.log_step, self.mean, self.target, self.count = float(np.log(step)), float(np.log(step)), target, 0

    def update(self, chance: Array) -> float:
        """The next step after chains were accepted with probabilities ``chance``; the least lucky weigh most."""
        self.count += 1
        reached = len(chance) / (1 / np.maximum(chance, 1e-3)).sum()
        self.log_step += float(reached - self.target) * self.count**-0.5
        self.mean += (self.log_step - self.mean) * min(1.0, 3 / self.count)
        return float(np.exp(self.log_step))

    @property
    def final(self) -> float:
        return float(np.exp(self.mean))


def _first_step(density: Density, q: Array, value: Array, gradient: Array, rng: np.random.Generator) -> float:
    """A step that is accepted about half of the time: doubled or halved from 1 until it passes that."""
    p, step, unit = rng.standard_normal(q.shape), 1.0, np.ones(q.shape[1])
    direction = 0
    for _ in range(60):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            _, after, _, p_new = _trajectory(density, q, value, gradient, p, step, 1, unit)
            energy = after - value + 0.5 * ((p**2).sum(axis=1) - (p_new**2).sum(axis=1))
        good = float(np.exp(np.minimum(np.where(np.isfinite(energy), energy, -np.inf), 0.0)).mean()) > 0.5
        if direction == 0:
            direction = 1 if good else -1
        elif good != (direction > 0):
            break
        step *= 2.0**direction
    return step


def _van_der_corput(count: int) -> Array:
    """The sequence 1/2, 1/4, 3/4, 1/8, ...: evenly spread over (0, 1) at any length."""
    index = np.arange(1, count + 1)
    bits = np.arange(int(count).bit_length())
    return np.asarray((((index[:, None] >> bits) & 1) * 0.5 ** (bits + 1.0)).sum(axis=1))
