"""GP-UCB and GP-BUCB over a table of candidates, exact: what faster methods are measured against.

The posterior over all candidates is kept up to date: an evaluation adds a row ``v`` to the Cholesky factor, takes
``v^2`` off every variance and adds ``v e`` to every mean. That costs ``t m`` for the t-th of m candidates, so T
evaluations cost ``T^2 m``.

GP-UCB evaluates where ``mean - beta sd`` is least. GP-BUCB chooses a batch before the values are in: variances are
updated within it, as they need no values, means at its end.

Srinivas, Krause, Kakade, Seeger: Gaussian Process Optimization in the Bandit Setting, ICML 2010 (GP-UCB). Desautels,
Krause, Burdick: Parallelizing Exploration-Exploitation Tradeoffs in Gaussian Process Bandit Optimization, JMLR 2014
(GP-BUCB).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import process_time

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.parameters import Floats
from nearpeak.search.surrogates.gp import GP, fit
from nearpeak.search.surrogates.kernels import Kernel

Indices = NDArray[np.intp]
Evaluate = Callable[[Indices], Floats]
"""Noisy values ``[k]``, standardised as the kernel expects them, of the candidates with these indices ``[k]``."""


@dataclass(frozen=True)
class BanditRun:
    """Evaluations of candidates in their order.

    Attributes:
        chosen: candidates, ``[T]``. values: what was seen, ``[T]``. seconds: of processor time that choosing took until
            each was chosen, ``[T]``. batches: sizes of the batches, in order. dictionaries: inducing points of each
            batch, for methods that have them.
    """

    chosen: Indices
    values: Floats = field(repr=False)
    seconds: Floats = field(repr=False)
    batches: Indices = field(repr=False)
    dictionaries: Indices = field(default_factory=lambda: np.empty(0, dtype=np.intp), repr=False)

    @property
    def switches(self) -> int:
        """How often an evaluation was of another candidate than the one before."""
        return int((self.chosen[1:] != self.chosen[:-1]).sum())

    def regret(self, truth: Floats) -> Floats:
        """Sum of what the evaluations so far were above the least of the true values ``[m]``, ``[T]``."""
        return np.cumsum(truth[self.chosen] - truth.min())

    def charged(self, evaluation: float, switch: float) -> float:
        """Seconds of the evaluations, and of changing from one candidate to another."""
        return len(self.chosen) * evaluation + self.switches * switch


def gp_ucb(
    kernel: Kernel, candidates: Floats, evaluate: Evaluate, rounds: int, noise: float, beta: float = 3.0, batch: int = 1
) -> BanditRun:
    """GP-UCB, or GP-BUCB with batches of more than one.

    Args:
        kernel: of the standardised function. candidates: features, ``[m, f]``. noise: variance of an observation,
            standardised. beta: standard deviations that the bound is below the mean.

    Raises:
        UsageError: fewer than one round, or a noise that is not positive.
    """
    check(rounds, noise)
    m = len(candidates)
    mean, variance = np.zeros(m), kernel.diagonal(candidates).copy()
    factor, weights = np.empty((rounds, m)), np.empty(rounds)
    chosen, values, seconds = np.empty(rounds, dtype=np.intp), np.empty(rounds), np.empty(rounds)
    scales = np.empty(rounds)
    done, batches, started = 0, [], process_time()
    while done < rounds:
        end = min(done + batch, rounds)
        for t in range(done, end):
            i = int(np.argmin(mean - beta * np.sqrt(variance)))
            before = factor[:t, i]
            scales[t] = np.sqrt(max(variance[i], 0.0) + noise)
            row = kernel(candidates[i : i + 1], candidates)[0]
            factor[t] = (row - before @ factor[:t]) / scales[t]
            variance = np.maximum(variance - factor[t] ** 2, 1e-12)
            chosen[t], seconds[t] = i, process_time() - started
        values[done:end] = evaluate(chosen[done:end])
        for t in range(done, end):
            weights[t] = (values[t] - factor[:t, chosen[t]] @ weights[:t]) / scales[t]
        mean = mean + weights[done:end] @ factor[done:end]
        batches.append(end - done)
        done = end
    return BanditRun(chosen, values, seconds, np.array(batches))


def check(rounds: int, noise: float) -> None:
    """Refuse a bandit without rounds or noise.

    Raises:
        UsageError: fewer than one round, or a noise that is not positive.
    """
    if rounds < 1 or not noise > 0:
        raise UsageError(f"a bandit needs a round and a noise above 0, not {rounds} rounds and {noise:g}")


@dataclass(frozen=True)
class TableProblem:
    """A function on a table of candidates, seen with noise, and the kernel that a small sample of it suggests.

    Attributes:
        candidates: ``[m, f]``. truth: values, ``[m]``. deviation: of the noise. pilot: the GP of the sample, whose
            kernel, noise and standardisation all methods take.
    """

    candidates: Floats = field(repr=False)
    truth: Floats = field(repr=False)
    deviation: float
    pilot: GP = field(repr=False)

    @classmethod
    def of(
        cls, function: Callable[[Floats], Floats], candidates: Floats, noise: float, seed: int, sample: int = 100
    ) -> "TableProblem":
        """Of a function of features; ``noise`` as a share of its standard deviation over the table."""
        truth = function(candidates)
        deviation = float(noise * truth.std())
        rng = np.random.default_rng([seed, 7])
        few = rng.choice(len(candidates), min(sample, len(candidates)), replace=False)
        pilot = fit(candidates[few], truth[few] + deviation * rng.standard_normal(len(few)), noise=deviation**2)
        return cls(candidates, truth, deviation, pilot)

    @property
    def noise(self) -> float:
        """Variance of an observation in the pilot's standardised units."""
        return (self.deviation / self.pilot.spread) ** 2

    def evaluator(self, seed: int) -> Evaluate:
        """Noisy standardised values; the noise is drawn from ``seed`` in the order of the evaluations."""
        rng = np.random.default_rng([seed, 3])

        def evaluate(which: Indices) -> Floats:
            seen = self.truth[which] + self.deviation * rng.standard_normal(len(which))
            return np.asarray((seen - self.pilot.centre) / self.pilot.spread)

        return evaluate
