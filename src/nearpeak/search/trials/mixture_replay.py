"""Searches of data mixtures over trainings that were recorded: what proxies save.

A table of trainings on a lattice of mixtures, at every size, is revealed one training at a time. Without one, losses
follow a law of data mixing (Ye et al.: Data Mixing Laws: Optimizing Data Mixtures by Predicting Language Modeling
Performance, arXiv 2403.16952, 2024).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import UsageError
from nearpeak.search.history import History
from nearpeak.search.parameters import Floats
from nearpeak.search.space import Space
from nearpeak.search.surrogates.kernels import squared_distances
from nearpeak.search.trials.mixtures import MixtureSearch, lattice, mixture_space, training_flops
from nearpeak.topic import Explanation, Option, Table, Topic, numbers, require_positive


@dataclass(frozen=True)
class Proxies:
    """Trainings on a lattice of mixtures that were recorded.

    Attributes:
        mixtures: ``[n, domains]``. weights: of the model of each size, ``[s]``. flops: of one training, ``[s]``.
        losses: on each domain, ``[n, s, domains]``.
    """

    mixtures: Floats
    weights: Floats
    flops: Floats
    losses: Floats

    @property
    def space(self) -> Space:
        """Of all sizes."""
        return mixture_space(self.mixtures.shape[1], tuple(self.weights.tolist()))

    def of_size(self, size: int) -> "Proxies":
        """One size alone."""
        chosen = [size]
        return Proxies(self.mixtures, self.weights[chosen], self.flops[chosen], self.losses[:, chosen])

    def loss(self, points: Floats, target: Floats) -> Floats:
        """What rows of the space reach on domains that count by ``target [domains]``, ``[k]``.

        Raises:
            UsageError: a mixture was not recorded.
        """
        apart = squared_distances(points[:, :-1], self.mixtures)
        if (apart.min(axis=1) > 1e-6).any():
            raise UsageError(f"no training on {points[np.argmax(apart.min(axis=1)), :-1]} was recorded")
        return np.asarray(self.losses[apart.argmin(axis=1), points[:, -1].astype(int)] @ target)


def flops_to(
    proxies: Proxies, method: MixtureSearch, target: Floats, loss: float, seed: int
) -> tuple[float, NDArray[np.intp]]:
    """FLOPs until a model of the largest size reaches a loss, and trainings of each size, ``[s]``.

    The FLOPs are infinite where everything was trained and none reached it.
    """
    space, last = proxies.space, len(proxies.weights) - 1
    history, trained = History.empty(space.width, seed=seed), np.zeros(last + 1, dtype=np.intp)
    while True:
        rows = method.propose(space, history, 1, np.random.default_rng([seed, len(history)]))
        if len(rows) == 0:
            return float("inf"), trained
        value, size = float(proxies.loss(rows, target)[0]), int(rows[0, -1])
        trained[size] += 1
        history = history.told(rows[0], value, float(proxies.flops[size]))
        if size == last and value <= loss:
            return float(trained @ proxies.flops), trained


def mixing_law(domains: int, steps: int, seed: int = 0) -> Proxies:
    """Losses by a law, not by training: ``c_i + (1 + 40 / N^0.3) k_i exp(-sum_j t_ij r_j)`` on domain i of mixture r.

    Ye et al.: Data Mixing Laws, arXiv 2403.16952 (2024); the dependence on the model's weights N is a power law.
    """
    rng = np.random.default_rng(seed)
    mixtures, weights = lattice(domains, steps), np.array([1e6, 1e7, 1e8])
    floor, size = rng.uniform(1, 2, domains), rng.uniform(0.5, 1.5, domains)
    own, shared = np.diag(rng.uniform(3, 8, domains)), rng.uniform(0, 1.5, (domains, domains))
    shape = size * np.exp(-mixtures @ (own + shared).T)
    # Small models lose more on some domains than on others: the best mixture drifts with size.
    grown = 1 + rng.uniform(20, 60, domains) / weights[:, None] ** 0.3
    return Proxies(mixtures, weights, training_flops(weights, 20 * weights[-1]), floor + shape[:, None] * grown)


def recorded_in(path: str) -> Proxies:
    """A file that ``tools/record_mixtures.py`` wrote.

    Raises:
        UsageError: there is none, or it holds no trainings on mixtures.
    """
    try:
        with np.load(path) as held:
            return Proxies(*(np.asarray(held[n], dtype=float) for n in ("mixtures", "weights", "flops", "losses")))
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"no mixtures in {path!r} ({error}): mixtures, weights, flops, losses in an .npz") from None


def _explain(table: str, domains: int, target: tuple[float, ...], tries: int, rate: float, seed: int) -> Explanation:
    require_positive(tries=tries, rate=rate)
    proxies = recorded_in(table) if table else mixing_law(domains, 10, seed)
    parts = proxies.mixtures.shape[1]
    wanted = np.asarray(target or np.full(parts, 1 / parts))
    if len(wanted) != parts or not (wanted >= 0).all() or not wanted.sum() > 0:
        raise UsageError(f"--target is {parts} weights that are not negative, one a domain")
    wanted = wanted / wanted.sum()
    every = proxies.losses[:, -1] @ wanted
    drawn = np.random.default_rng([seed, 1]).permutation(len(every))[:tries]
    reached = float(every[drawn].min())
    several, trained = flops_to(proxies, MixtureSearch(), wanted, reached, seed)
    single, alone = flops_to(proxies.of_size(-1), MixtureSearch(), wanted, reached, seed)
    random = tries * float(proxies.flops[-1])
    hours = np.array([several, single, random]) / rate / 3600
    best = proxies.mixtures[int(np.argmin(every))]
    return Explanation(
        {
            "random_loss": reached,
            "flops_share_of_random": several / random,
            "flops_share_of_single_size": several / single,
            "best_mixture": ", ".join(f"{w:.2g}" for w in best),
        },
        (
            Table.of("FLOPs until the target size is as good as the best of random mixtures",
                     method=["all sizes", "target size alone", f"{tries} random mixtures"],
                     flops=[several, single, random], gpu_hours=hours),
            Table.of("Trainings with all sizes", weights=proxies.weights, trainings=trained),
        ),
        (f"With proxies the search takes {several / random:.2g} of the FLOPs of random search, with the target size "
         f"alone ({int(alone.sum())} trainings) {single / random:.2g}.",),
    )  # fmt: skip


TOPIC = Topic(
    "mixtures",
    "Which mixture of data domains gives the best large model, for the least FLOPs spent on finding it?",
    "Chen et al., ADMIRE-BayesOpt: Accelerated Data MIxture RE-weighting for Language Models with Bayesian "
    "Optimization, 2025 (arXiv 2508.11551)",
    (
        Option("table", str, "An .npz of recorded trainings; without one, losses follow a law of data mixing.", ""),
        Option("domains", int, "Domains, where there is no table.", 3),
        Option("target", numbers, "Weights of the domains in the loss that counts; none: all alike.", ()),
        Option("tries", int, "Random mixtures to compare with.", 20),
        Option("rate", float, "FLOP/s of a training GPU, as it is really reached.", 4e14),
        Option("seed", int, "Of the searches and the law.", 0),
    ),
    _explain,
    "--domains 3 --target 6,3,1 --seed 1",
)
