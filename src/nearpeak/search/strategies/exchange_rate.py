"""Quality against training time at an exchange rate: models that are nearly as good and train much faster.

A user says what halving the time is worth, ``w`` in units of the value (a loss, an error share). What is minimised is

    J(x) = value(x) + w log2(seconds(x))

Both parts are measured in every evaluation, and both are functions with a character of their own: seconds follow from
sizes almost without noise, the value does not. So each has its own Gaussian process, of the value and of log2 seconds;
their sum is normal too, with mean ``m_v + w m_t`` and variance ``s_v^2 + w^2 s_t^2``, and expected improvement of J is
in closed form. By the logarithm the rate means the same for a minute and for a day. ``w = 0`` asks for quality alone.
Every other evaluation does: whatever is quick and learns nothing is a local optimum of J, and a search that pays for
seconds from its first step on stays there; what makes models good has to be found first.

Histories and logs hold the value and the seconds of every trial, never J: the rate can change afterwards (``pick``).

Wang et al.: Bayesian Optimization for Selecting Efficient Machine Learning Models, CIKM workshop 2020
(arXiv 2008.00386).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Final

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.search.acquisitions.analytic import Acquisition, log_expected_improvement
from nearpeak.search.bayesian import Bayesian, Preparation, incumbent, opening, prepared
from nearpeak.search.candidates import maximize
from nearpeak.search.history import History
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats, Ordinal
from nearpeak.search.space import Space
from nearpeak.search.surrogates.gp import GP
from nearpeak.search.surrogates.refitted import GPSurrogate, RefittedGP
from nearpeak.search.trials.trainings import RECIPES, Data, Networks, advance, begin, spirals
from nearpeak.topic import Explanation, Option, Table, Topic


@dataclass(frozen=True)
class Exchanged:
    """Beliefs about J: the sum of two independent Gaussian processes.

    Attributes:
        value: of the value. doublings: of log2 seconds. worth: of halving the seconds, in units of the value.
    """

    value: GP
    doublings: GP
    worth: float

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation at features ``[m, f]``."""
        (mean, sd), (log_time, spread) = self.value.predict(x), self.doublings.predict(x)
        return mean + self.worth * log_time, np.hypot(sd, self.worth * spread)

    def sample(self, x: Floats, count: int, rng: np.random.Generator) -> Floats:
        """Joint draws, ``[count, m]``."""
        return self.value.sample(x, count, rng) + self.worth * self.doublings.sample(x, count, rng)

    def covariance(self, a: Floats, b: Floats) -> Floats:
        """Of J at two sets of features, ``[n, m]``."""
        return self.value.covariance(a, b) + self.worth**2 * self.doublings.covariance(a, b)

    @property
    def observation_variance(self) -> float:
        """Of one more observation of J about the function."""
        return self.value.observation_variance + self.worth**2 * self.doublings.observation_variance

    def believing(self, x: Floats) -> "Exchanged":
        """As if features ``[k, f]`` had been evaluated and both means had come true."""
        value = self.value.told(x, self.value.expectation(x))
        return Exchanged(value, self.doublings.told(x, self.doublings.expectation(x)), self.worth)


@dataclass(frozen=True)
class ExchangeRate:
    """Bayesian optimization of J.

    Attributes:
        worth: of halving the seconds of an evaluation, in units of the value. acquisition: of J.
        value, seconds: the surrogates of the two parts. initial: evaluations before the first
            surrogate; None: twice the parameters and two.

    Raises:
        UsageError: the worth is negative or no number.
    """

    worth: float = 0.01
    acquisition: Acquisition | Preparation = log_expected_improvement
    value: GPSurrogate = field(default_factory=RefittedGP)
    seconds: GPSurrogate = field(default_factory=RefittedGP)
    initial: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.worth < np.inf:
            raise UsageError(f"the worth of halving the time is 0 or more, in units of the value, not {self.worth:g}")

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``.

        Raises:
            UsageError: an evaluation has no cost.
        """
        first = opening(space, history, count, rng, self.initial)
        if first is not None:
            return first
        posterior, begun = self.posterior(space, history, rng), len(history) + len(history.pending)
        if len(history.pending):
            posterior = posterior.believing(space.encode(history.pending))
        for turn in range(begun, begun + count):
            believed = replace(posterior, worth=self.worth if turn % 2 else 0.0)
            known = replace(history, values=exchanged(history, believed.worth))
            best = incumbent(space, known, believed)
            acquisition = prepared(self.acquisition, space, known, believed, rng)

            def score(
                x: Floats, believed: Exchanged = believed, best: float = best, acquisition: Acquisition = acquisition
            ) -> Floats:
                return acquisition(believed, x, best)

            point = maximize(space, score, known, rng)[None]
            posterior, history = posterior.believing(space.encode(point)), history.waiting_for(point)
        return history.pending[-count:]

    def posterior(self, space: Space, history: History, rng: np.random.Generator) -> Exchanged:
        """Beliefs about J from the evaluations that succeeded."""
        doublings = np.where(history.succeeded, log2_seconds(history), np.nan)
        times = replace(history, values=doublings, variances=np.full(len(history), np.nan))
        return Exchanged(self.value(space, history, rng), self.seconds(space, times, rng), self.worth)


def log2_seconds(history: History) -> Floats:
    """Of each evaluation, ``[n]``; NaN where it failed.

    Raises:
        UsageError: an evaluation that succeeded took no time.
    """
    if (timeless := history.succeeded & ~(history.costs > 0)).any():
        raise UsageError(
            f"evaluation {int(np.argmax(timeless)) + 1} took {history.costs[np.argmax(timeless)]:g} s: to trade quality"
            " against time, every evaluation needs its seconds (the cost of its Outcome)"
        )
    return np.log2(np.where(history.succeeded, history.costs, np.nan))


def exchanged(history: History, worth: float) -> Floats:
    """J of each evaluation, ``[n]``; NaN where it failed."""
    return np.asarray(history.values + worth * log2_seconds(history))


def pick(history: History, worth: float) -> int:
    """The feasible evaluation with the least J; ``worth`` 0: with the least value.

    Raises:
        UsageError: none succeeded and met its constraints.
    """
    if history.best is None:
        raise UsageError("no evaluation succeeded: there is nothing to pick")
    return int(np.argmin(np.where(history.feasible, exchanged(history, worth), np.inf)))


NETWORKS: Final = Space({**RECIPES.parameters, "epochs": Ordinal((1, 2, 4, 8, 16, 32, 64))})
"""Recipes of small networks, and for how long each is trained."""


def example(seed: int = 0) -> Data:
    """Spirals with 1,024 points to learn from and 7,168 to judge by."""
    whole = spirals(8_192, noise=0.3, seed=seed)
    held = np.concatenate([whole.inputs[1_024:], whole.held])
    classes = np.concatenate([whole.classes[1_024:], whole.held_classes])
    return Data(whole.inputs[:1_024], whole.classes[:1_024], held, classes)


def train(point: Floats, data: Data, seed: int = 0) -> tuple[float, float]:
    """Train the network of one row of ``NETWORKS``: its share of errors on the held examples, and processor seconds."""
    epochs = int(NETWORKS.values(point[None])["epochs"][0])
    started = process_time()
    network = begin(point[None, :-1], data, seed)
    for _ in range(epochs):
        network = advance(network, data)
    seconds = process_time() - started
    return _errors(network, data), seconds


def _errors(network: Networks, data: Data) -> float:
    layer = data.held
    with np.errstate(over="ignore", invalid="ignore"):
        for i, weights in enumerate(network.weights):
            layer = layer @ weights[0, :-1] + weights[0, -1]
            layer = np.maximum(layer, 0) if i < len(network.weights) - 1 else layer
    # A network that diverged says nothing: its largest logit is NaN, and argmax takes the first class.
    return float((layer.argmax(axis=1) != data.held_classes).mean())


def search(
    method: Method, space: Space, evaluate: Callable[[Floats], tuple[float, float]], trials: int, seed: int
) -> History:
    """Trials one after another; ``evaluate`` gives the value and the seconds of a configuration ``[width]``."""
    history = History.empty(space.width, seed=seed)
    for i in range(trials):
        point = method.propose(space, history, 1, np.random.default_rng([seed, i]))[0]
        history = history.told(point, *evaluate(point))
    return history


def _explain(worth: float, trials: int, seed: int) -> Explanation:
    if trials < 2:
        raise UsageError(f"a search needs at least 2 trials, not {trials}")
    data, first = example(seed), max(trials // 4, 2)

    def evaluate(point: Floats) -> tuple[float, float]:
        return train(point, data, seed)

    joint = search(ExchangeRate(worth, initial=first), NETWORKS, evaluate, trials, seed)
    alone = search(Bayesian(RefittedGP(), initial=first), NETWORKS, evaluate, trials, seed)
    ours, theirs = pick(joint, worth), pick(alone, 0.0)
    share, lost = joint.costs[ours] / alone.costs[theirs], joint.values[ours] - alone.values[theirs]
    rows = [
        {"trial": i + 1, "error_share": value, "train_time": seconds, "joint": j} | NETWORKS.describe(point)
        for i, (value, seconds, j, point) in enumerate(
            zip(
                joint.values.tolist(), joint.costs.tolist(), exchanged(joint, worth).tolist(), joint.points, strict=True
            )
        )
    ]
    picks = Table.of(
        "What each search picks",
        search=["quality and time", "quality alone"],
        error_share=[joint.values[ours], alone.values[theirs]],
        train_time=[joint.costs[ours], alone.costs[theirs]],
        all_trials_time=[joint.costs.sum(), alone.costs.sum()],
    )
    return Explanation(
        {"time_share": float(share), "errors_added_share": float(lost)},
        (picks, Table("Every trial of the joint search", tuple(rows))),
        (
            f"Where halving the time is worth {100 * worth:.3g} points of error, the pick trains in "
            f"{100 * share:.3g} % of the time of the pick by quality alone, at {100 * lost:+.3g} points of error.",
        ),
    )


TOPIC = Topic(
    "exchange",
    "What quality does a shorter training cost, at my exchange rate between the two?",
    "Wang et al., Bayesian Optimization for Selecting Efficient Machine Learning Models, 2020 (arXiv 2008.00386)",
    (
        Option("worth", float, "What halving the training time is worth, as a share of errors.", 0.005),
        Option("trials", int, "Networks that each search trains.", 16),
        Option("seed", int, "Of the data, the networks and the searches.", 0),
    ),
    _explain,
    "--worth 0.005 --trials 16",
)
