"""A few configurations that suffice: a coreset by greedy cover, and which of it to try on a new task.

Of tasks (programs, kernels, shapes) and configurations (flag sets, schedules) that were all measured, ``r_ij`` is the
share of the default's cost that configuration ``j`` saves on task ``i``. The coreset is the set ``S`` of a given size
that covers best,

    J(S) = sum_i max(0, max_{j in S} r_ij),

which is monotone and submodular, so that adding the best member one at a time reaches at least ``1 - 1/e`` = 63 % of
the optimum (Nemhauser, Wolsey & Fisher 1978). For a new task its features predict the members' *normalised values*
``v_ij = r_ij / max_k r_ik``: a softmax regression learns ``softmax(v_i / T)``. Raw values would make it care for the
few tasks with much to save. Only the few members are tried that promise the best together: the greedy cover of the
predicted values plus each of the errors that predictions made on tasks left out. Where features tell much that is the
members of highest prediction, as in the paper; where they tell nothing it is the cover of the tasks seen.

Liang et al., "Learning Compiler Pass Orders using Coreset and Normalized Value Prediction", ICML 2023 (arXiv
2301.05104); a linear model on features that the caller gives takes the place of their graph network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.errors import UsageError
from nearpeak.topic import Explanation, Option, Table, Topic, require_positive

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

PENALTIES = 10.0 ** np.arange(-3.0, 2.0)
TEMPERATURE = 0.1
"""``T``: a member that saves a tenth less than the best is a third as likely."""


def savings(costs: ArrayLike, default: int = 0) -> Array:
    """Shares ``[tasks, configurations]`` of the default's cost that are saved; a failed (NaN) configuration saves -1.

    Raises:
        UsageError: a cost is not above 0, or the default failed on a task.
    """
    table = np.asarray(costs, float)
    require_positive(costs=table[~np.isnan(table)])
    if np.isnan(table[:, default]).any():
        raise UsageError(f"the default, configuration {default}, failed on task {np.isnan(table[:, default]).argmax()}")
    return np.asarray(np.nan_to_num(1 - table / table[:, [default]], nan=-1.0))


def covered(reward: Array, members: ArrayLike) -> float:
    """``J``: what the best of the members saves on each task, summed; 0 where none saves anything."""
    return float(np.maximum(reward[:, np.asarray(members, int)], 0).max(axis=1, initial=0.0).sum())


def cover(reward: Array, size: int) -> Ints:
    """``size`` configurations by greedy cover of ``reward`` ``[tasks, configurations]``, in the order of their choice.

    Raises:
        UsageError: ``size`` is not between 1 and the number of configurations.
    """
    _require_size(reward, size)
    best, members = np.zeros(len(reward)), np.full(size, -1)
    for k in range(size):
        gain = np.maximum(reward - best[:, None], 0).sum(axis=0)
        # Once everything is covered the rest is chosen by the mean.
        gain[members[:k]] = -np.inf
        ties = np.flatnonzero(gain == gain.max())
        members[k] = ties[reward[:, ties].mean(axis=0).argmax()]
        best = np.maximum(best, reward[:, members[k]])
    return members


def optimal_cover(reward: Array, size: int) -> Ints:
    """The ``size`` configurations of greatest ``J``, by an integer program (facility location); for small tables."""
    from scipy.optimize import LinearConstraint, milp
    from scipy.sparse import block_array, csr_array, eye_array, kron

    _require_size(reward, size)
    tasks, count = reward.shape
    value = np.maximum(reward, 0)
    # x_j: member; y_ij <= x_j: task i uses j, one at most.
    uses = kron(np.ones((tasks, 1)), eye_array(count))
    one = kron(eye_array(tasks), np.ones((1, count)))
    rows = block_array(
        [
            [np.ones((1, count)), csr_array((1, tasks * count))],
            [csr_array((tasks, count)), one],
            [-uses, eye_array(tasks * count)],
        ]
    )
    high = np.concatenate([[size], np.ones(tasks), np.zeros(tasks * count)])
    found = milp(
        np.concatenate([np.zeros(count), -value.ravel()]), bounds=(0, 1),
        integrality=np.concatenate([np.ones(count), np.zeros(tasks * count)]),
        constraints=LinearConstraint(rows.tocsr(), -np.inf, high),
    )  # fmt: skip
    return np.argsort(-found.x[:count], kind="stable")[:size]


def _require_size(reward: Array, size: int) -> None:
    if not 1 <= size <= reward.shape[1]:
        raise UsageError(f"a coreset of {reward.shape[1]} configurations has 1 to as many members, not {size}")


def normalised_values(reward: Array) -> Array:
    """``v`` ``[tasks, members]``: 1 for a task's best member; what costs more than the default is below 0, -1 at least.

    Where no member saves anything the least bad ones stand out by what they cost.
    """
    best = reward.max(axis=1, keepdims=True)
    return np.asarray(np.clip(np.where(best > 0, reward / np.where(best > 0, best, 1), reward - best), -1, 1))


@dataclass(frozen=True)
class Advisor:
    """What to try on a new task.

    Attributes:
        members: ``[size]`` configurations of the coreset, in the order of their choice.
        mean, scale: ``[features]`` of the logarithms of features. weights: ``[features + 1, size]``.
        errors: ``[tasks, size]`` true less predicted normalised values of tasks that were left out.
    """

    members: Ints
    mean: Array
    scale: Array
    weights: Array
    errors: Array

    def predict(self, features: ArrayLike) -> Array:
        """Predicted distribution over the members ``[tasks, size]`` from ``features`` ``[tasks, features]``."""
        return _softmax(_design(np.asarray(features, float), self.mean, self.scale) @ self.weights)

    def advise(self, features: ArrayLike, tries: int) -> Ints:
        """Configurations to try ``[tasks, tries]``, the most promising first."""
        values = _centred(TEMPERATURE * np.log(np.maximum(self.predict(features), 1e-300)))
        possible = values[:, None] + self.errors  # [tasks, errors, size]
        possible -= possible.min(axis=2, keepdims=True) - 1e-9
        tasks = np.arange(len(values))
        best, chosen = np.zeros(possible.shape[:2]), np.zeros((len(values), tries), np.int64)
        for k in range(tries):
            gain = np.maximum(possible - best[..., None], 0).sum(axis=1)
            gain[tasks[:, None], chosen[:, :k]] = -1
            chosen[:, k] = gain.argmax(axis=1)
            best = np.maximum(best, possible[tasks, :, chosen[:, k]])
        return np.asarray(self.members[chosen])


def _centred(values: Array) -> Array:
    return np.asarray(values - values.mean(axis=1, keepdims=True))


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _design(features: Array, mean: Array, scale: Array) -> Array:
    shifted = (np.sign(features) * np.log1p(np.abs(features)) - mean) / scale
    return np.column_stack([shifted, np.ones(len(features))])


def _regress(x: Array, target: Array, penalty: float) -> Array:
    """Weights of the softmax regression of distributions ``target`` on ``x``; the intercept is not penalised."""
    from scipy.optimize import minimize

    shape = (x.shape[1], target.shape[1])
    ridge = np.full((shape[0], 1), penalty)
    ridge[-1] = 0

    def loss(flat: Array) -> tuple[float, Array]:
        w = flat.reshape(shape)
        p = _softmax(x @ w)
        gradient = x.T @ (p - target) / len(x) + ridge * w
        value = -(target * np.log(np.maximum(p, 1e-300))).sum() / len(x) + (ridge * w * w).sum() / 2
        return float(value), gradient.ravel()

    return np.asarray(minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B").x.reshape(shape))


def _parts(groups: NDArray[np.generic], parts: int, rng: np.random.Generator) -> list[Ints]:
    """Tasks cut into parts such that no group is in two of them."""
    names = rng.permutation(np.unique(groups))
    return [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(names, min(parts, len(names)))]


def learn(
    reward: Array, features: ArrayLike, size: int = 20, groups: ArrayLike | None = None, seed: int = 0
) -> Advisor:
    """The coreset of ``reward`` and the regression on it; its penalty predicts best what was left out.

    Args:
        reward: ``[tasks, configurations]``, see ``savings``. features: ``[tasks, features]``, counts or sizes.
        groups: ``[tasks]`` tasks of one group are left out together, if there are two groups or more.

    Raises:
        UsageError: ``size`` is out of range, or there are fewer than two tasks.
    """
    x = np.asarray(features, float)
    kinds = np.asarray(groups if groups is not None and len(np.unique(groups)) > 1 else np.arange(len(reward)))
    if len(reward) < 2:
        raise UsageError("two tasks or more are needed to learn what holds for others")
    members = cover(reward, size)
    values = normalised_values(reward[:, members])
    target = _softmax(values / TEMPERATURE)
    logs = np.sign(x) * np.log1p(np.abs(x))
    mean, scale = logs.mean(axis=0), np.maximum(logs.std(axis=0), 1e-6)
    design = _design(x, mean, scale)
    predicted = np.zeros((len(PENALTIES), *target.shape))
    for part in _parts(kinds, 5, np.random.default_rng(seed)):
        rest = np.setdiff1d(np.arange(len(reward)), part)
        for k, penalty in enumerate(PENALTIES):
            weights = _regress(design[rest], target[rest], float(penalty))
            predicted[k, part] = np.log(np.maximum(_softmax(design[part] @ weights), 1e-300))
    best = int((target * predicted).sum(axis=(1, 2)).argmax())
    errors = _centred(values) - _centred(TEMPERATURE * predicted[best])
    return Advisor(members, mean, scale, _regress(design, target, float(PENALTIES[best])), errors)


@dataclass(frozen=True)
class HeldOut:
    """Shares of the default's cost that are saved on tasks that were not learned from, ``[tasks]`` each.

    Attributes:
        advised: best of ``tries`` that the regression names. leading: of the first of the coreset, whatever the task.
        random: mean over draws of the best of as many random configurations. coreset, every: of all members, of all
            configurations.
    """

    advised: Array
    leading: Array
    random: Array
    coreset: Array
    every: Array


def hold_out(
    costs: ArrayLike, features: ArrayLike, groups: ArrayLike, size: int = 20, tries: int = 9, random: int = 10,
    parts: int = 5, draws: int = 200, seed: int = 0,
) -> HeldOut:  # fmt: skip
    """Learn without each part of the groups and try on it; configuration 0 is the default, and counts as tried.

    Args:
        costs: ``[tasks, configurations]``. random: tries of the random search. draws: that its mean is over.
    """
    reward, x, kinds = savings(costs), np.asarray(features, float), np.asarray(groups)
    if not 1 <= tries <= size:
        raise UsageError(f"tries must lie in 1 .. {size}, the size of the coreset, not {tries}")
    rng = np.random.default_rng(seed)
    out = {name: np.zeros(len(reward)) for name in HeldOut.__annotations__}
    for part in _parts(kinds, parts, rng):
        rest = np.setdiff1d(np.arange(len(reward)), part)
        advisor = learn(reward[rest], x[rest], size, kinds[rest], seed)
        own = reward[part]
        out["advised"][part] = np.take_along_axis(own, advisor.advise(x[part], tries), axis=1).max(axis=1)
        out["leading"][part] = own[:, advisor.members[:tries]].max(axis=1)
        out["coreset"][part] = own[:, advisor.members].max(axis=1)
        out["every"][part] = own.max(axis=1)
        drawn = rng.random((draws, own.shape[1])).argpartition(random, axis=1)[:, :random]
        out["random"][part] = np.maximum(own[:, drawn].max(axis=2), 0).mean(axis=1)
    return HeldOut(**{name: np.maximum(value, 0) for name, value in out.items()})


def best_of(advisor: Advisor, features: ArrayLike, evaluate: Callable[[int], float], tries: int) -> tuple[int, float]:
    """Try the advised configurations on one task with ``features`` ``[features]``: the cheapest and its cost.

    Raises:
        UsageError: all of them failed (cost NaN).
    """
    chosen = advisor.advise(np.asarray(features, float)[None], tries)[0].tolist()
    costs = np.array([evaluate(c) for c in chosen], float)
    if np.isnan(costs).all():
        raise UsageError(f"all of the configurations {chosen} failed: try more than {tries}, or keep the default")
    best = int(np.nanargmin(costs))
    return chosen[best], float(costs[best])


def tiles(tasks: int, seed: int) -> tuple[Array, Array]:
    """An example: seconds ``[tasks, 96]`` of matrix products on 64 workers by tile and cut, and their shapes.

    A worker takes one tile of ``m x n x k/cut`` at a time; small tiles read more per product, and cuts are added up
    afterwards. Configuration 0 is 64 x 64 without a cut.
    """
    rng = np.random.default_rng(seed)
    shape = np.exp2(rng.uniform([4, 6, 6], [13, 13, 14], (tasks, 3))).astype(int)
    m, n, cut = (
        g.ravel() for g in np.meshgrid(2 ** np.arange(3, 9), 2 ** np.arange(5, 9), 2 ** np.arange(0, 4), indexing="ij")
    )
    first = np.flatnonzero((m == 64) & (n == 64) & (cut == 1))
    order = np.concatenate([first, np.setdiff1d(np.arange(len(m)), first)])
    m, n, cut = m[order], n[order], cut[order]
    rows, columns, depth = (shape[:, [i]] for i in range(3))
    waves = np.ceil(np.ceil(rows / m) * np.ceil(columns / n) * cut / 64)
    tile = np.maximum(m * n / 4e12, (m + n) / 5e10) * np.ceil(depth / cut)
    return waves * tile + (cut > 1) * rows * columns * cut / 2e11 + 2e-6, shape.astype(float)


def _explain(table: str, size: int, tries: int, seed: int) -> Explanation:
    if table:
        if not Path(table).is_file():
            raise UsageError(f"no file {table!r}: give an .npz with costs [tasks, configurations], features, task")
        with np.load(table) as held:
            lacking = {"costs", "features", "task"} - set(held)
            if lacking:
                raise UsageError(f"{table} lacks {', '.join(sorted(lacking))}; it holds {', '.join(held)}")
            costs, features, task = (held[name] for name in ("costs", "features", "task"))
        costs = np.where(costs > 0, costs, np.nan)
        groups = np.array([str(name).rsplit("-", 1)[0] for name in task])
    else:
        costs, features = tiles(120, seed)
        groups = np.arange(len(costs)).astype(str)
    found = hold_out(costs, features, groups, size, tries, tries, seed=seed)
    reward = savings(costs)
    members = cover(reward, size)
    share = found.advised.mean() / max(float(found.every.mean()), 1e-300)
    return Explanation(
        {
            "tasks": len(reward),
            "configurations": reward.shape[1],
            "advised_saving_share": float(found.advised.mean()),
            "leading_saving_share": float(found.leading.mean()),
            "random_saving_share": float(found.random.mean()),
            "coreset_saving_share": float(found.coreset.mean()),
            "best_saving_share": float(found.every.mean()),
        },
        (
            Table.of(
                "The coreset, in the order of its choice",
                configuration=members,
                covered_share=[
                    covered(reward, members[: k + 1]) / max(covered(reward, np.arange(reward.shape[1])), 1e-300)
                    for k in range(size)
                ],
                mean_saving_share=reward[:, members].mean(axis=0),
            ),
        ),
        (
            f"On tasks that were not learned from, the best of {tries} advised configurations costs "
            f"{100 * found.advised.mean():.3g} % less than the default on the mean, the best of {tries} random ones "
            f"{100 * found.random.mean():.3g} %, and the best of all {reward.shape[1]} "
            f"{100 * found.every.mean():.3g} %.",
            f"So {tries} tries reach {100 * share:.3g} % of what could be saved.",
        ),
    )


TOPIC = Topic(
    "coreset",
    "Which few configurations suffice for all tasks, and which of them should a new task try?",
    "Liang et al., Learning Compiler Pass Orders using Coreset and Normalized Value Prediction, ICML 2023 "
    "(arXiv 2301.05104)",
    (
        Option(
            "table",
            str,
            "An .npz: costs [tasks, configurations], the default first; features; task ('group-number').",
            "",
        ),
        Option("size", int, "Configurations of the coreset.", 20),
        Option("tries", int, "Configurations that a new task tries.", 8),
        Option("seed", int, "Of the parts that are left out, and of the example.", 0),
    ),
    _explain,
    "--size 16 --tries 4",
)
