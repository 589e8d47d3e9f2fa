"""Adaptive large neighbourhood search for integer programs, led by bandits, several configurations in parallel
(Cai, Kadioglu and Dilkina, Balans, IJCAI 2025, and ParBalans, arXiv 2508.06736).

From a first solution of the solver, each round a bandit chooses a neighbourhood (``neighbourhood.OPERATORS``), the
solver searches it for a moment, the outcome is accepted or not, and the bandit is paid by the outcome:

    new best  >  better than the current  >  accepted  >  rejected

Hill climbing accepts what is no worse. Simulated annealing accepts a worse value with probability
exp(-(v' - v) / (T |v|)), T falling geometrically over the run. Which bandit, pay, acceptance and neighbourhoods are
best depends on the instance and is not known before: ``solve_in_parallel`` runs diverse configurations in processes
that share nothing, and keeps the best.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nearpeak.errors import NearpeakError, UnknownName, UsageError
from nearpeak.search.solvers import bandits
from nearpeak.search.solvers.integer_program import FEASIBLE, IntegerProgram, Solution, read, solve
from nearpeak.search.solvers.neighbourhood import OPERATORS, Operator, State
from nearpeak.topic import Explanation, Option, Table, Topic

Array = NDArray[np.float64]
Acceptance = Callable[[float, float, float, np.random.Generator], bool]

FIRST_SHARE: Final = 0.1
"""Share of the time that the solver has alone for the first solution."""
ROUNDS_AT_LEAST: Final = 30
"""A neighbourhood is searched for at most this part of the time, so that the bandit has something to learn from."""
POOL: Final = 10
"""Solutions that crossover may draw from: the last ones that were accepted."""


def hill_climbing(value: float, current: float, progress: float, rng: np.random.Generator) -> bool:
    """Accept what is no worse than the current value."""
    return value <= current


def simulated_annealing(
    value: float, current: float, progress: float, rng: np.random.Generator, hot: float = 1e-2, cold: float = 1e-5
) -> bool:
    """Accept what is worse by the share d of the current value with probability exp(-d / T).

    T falls from ``hot`` to ``cold`` as ``progress`` goes from 0 to 1.
    """
    worse = (value - current) / max(abs(current), 1e-9)
    return bool(worse <= 0 or rng.random() < np.exp(-worse / (hot * (cold / hot) ** progress)))


@dataclass(frozen=True)
class Configuration:
    """How one search goes.

    Attributes:
        name: for reports. policy: which arm is pulled. acceptance: ``hill_climbing`` or ``simulated_annealing``.
        pay: rewards of a new best, a better, an accepted and a rejected solution, between 0 and 1.
        operators: names of ``neighbourhood.OPERATORS``.
    """

    name: str
    policy: bandits.Policy
    acceptance: Acceptance = hill_climbing
    pay: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 0.0)
    operators: tuple[str, ...] = tuple(OPERATORS)


KEEPING: Final = tuple(name for name in OPERATORS if name.startswith(("mutation", "crossover", "rins", "rens", "dins")))
"""Operators that only narrow bounds, so that what is left is small."""

CONFIGURATIONS: Final = (
    Configuration("softmax, annealing", partial(bandits.softmax, temperature=0.2), simulated_annealing,
                  (1.0, 0.5, 0.25, 0.0), KEEPING),
    Configuration("thompson, climbing", bandits.thompson),
    Configuration("epsilon-greedy, annealing", partial(bandits.epsilon_greedy, epsilon=0.25), simulated_annealing),
    Configuration("ucb1, climbing", bandits.ucb1, hill_climbing, (1.0, 0.5, 0.25, 0.0), KEEPING),
)  # fmt: skip
"""Diverse configurations; the first ones differ most."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        x: ``[n]``, feasible; None if there was none in time. value: at ``x``. bound: no solution is below it.
        status: "optimal", "infeasible", "time limit" or "rounds". configuration: whose it is.
        trace: seconds since the start and value of each new best. pulls, rewards: by operator.
    """

    x: Array | None
    value: float
    bound: float
    status: str
    configuration: str
    trace: tuple[tuple[float, float], ...] = ()
    pulls: dict[str, int] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)


def search(
    program: IntegerProgram,
    configuration: Configuration,
    time_limit: float,
    *,
    rounds: int | None = None,
    nodes: int = 500,
    start: Array | None = None,
    seed: int = 0,
) -> Found:
    """Search by one configuration on one core.

    Args:
        program: what to solve. configuration: how. time_limit: seconds.
        rounds: of choosing and searching, at most; a run that ends by them before the time is the same each time.
        nodes: of the solver's tree in a neighbourhood, at most. start: a feasible ``x [n]``. seed: of all choices.

    Raises:
        UsageError: ``time_limit`` is not above 0, or ``start`` is not feasible.
    """
    began = time.monotonic()
    first = _first(program, time_limit, None if rounds is None else nodes, start, seed)
    if first.x is None or first.status == "optimal":
        return _without_search(first, configuration.name, time.monotonic() - began)
    return _improve(program, configuration, first, began, time_limit, rounds, nodes, seed)


def _without_search(first: Solution, name: str, seconds: float) -> Found:
    trace = () if first.x is None else ((seconds, first.value),)
    return Found(first.x, first.value, first.bound, first.status, name, trace)


def _improve(
    program: IntegerProgram, configuration: Configuration, first: Solution, began: float, time_limit: float,
    rounds: int | None, nodes: int, seed: int,
) -> Found:  # fmt: skip
    """Search from ``first`` until ``time_limit`` after ``began``, on the clock that a machine's processes share."""
    assert first.x is not None
    rng = np.random.default_rng(seed)

    def elapsed() -> float:
        return time.monotonic() - began

    best = first.x
    trace: tuple[tuple[float, float], ...] = ((elapsed(), first.value),)
    relaxed = solve(program.relaxed(), time_limit=time_limit - elapsed(), seed=seed)
    bound = max(first.bound, relaxed.bound)
    state = State(program, first.x if relaxed.x is None else relaxed.x, bound, first.x, first.x[None])
    names = configuration.operators
    pulls, rewards = np.zeros(len(names)), np.zeros(len(names))
    while elapsed() < time_limit and (rounds is None or pulls.sum() < rounds) and not _closed(trace[-1][1], bound):
        arm = configuration.policy(pulls, rewards, rng)
        # Where rounds are counted, nodes alone limit each, lest the speed of the machine decide what is found.
        moment = min(time_limit - elapsed(), np.inf if rounds is not None else time_limit / ROUNDS_AT_LEAST)
        found = _neighbour(OPERATORS[names[arm]], state, moment, nodes, rng)
        outcome = 3
        if found is not None:
            value, current = program.value(found), program.value(state.current)
            progress = min(1.0, elapsed() / time_limit if rounds is None else pulls.sum() / rounds)
            if value < trace[-1][1]:
                outcome, best, trace = 0, found, (*trace, (elapsed(), value))
            elif configuration.acceptance(value, current, progress, rng):
                outcome = 1 if value < current else 2
            if outcome < 3 and (found != state.current).any():
                state = replace(state, current=found, pool=np.vstack([state.pool, found])[-POOL:])
        pulls[arm] += 1
        rewards[arm] += configuration.pay[outcome]
    value = trace[-1][1]
    status = "optimal" if _closed(value, bound) else "time limit" if elapsed() >= time_limit else "rounds"
    counts = dict(zip(names, pulls.astype(int).tolist(), strict=True))
    paid = dict(zip(names, rewards.tolist(), strict=True))
    return Found(best, value, bound, status, configuration.name, trace, counts, paid)


def _first(program: IntegerProgram, time_limit: float, nodes: int | None, start: Array | None, seed: int) -> Solution:
    """The start, or what the solver finds in its share of the time, or else its first solution after it."""
    if not time_limit > 0:
        raise UsageError(f"the time limit must be above 0 seconds, not {time_limit:g}")
    if start is not None:
        if start.shape != program.cost.shape or program.violation(start) > FEASIBLE:
            raise UsageError("the start is not feasible; begin without one, or with one that keeps every row and bound")
        return Solution(start, program.value(start), -np.inf, "start")
    share = FIRST_SHARE * time_limit if nodes is None else time_limit
    found = solve(program, time_limit=share, nodes=nodes, seed=seed)
    if found.x is not None or found.status not in ("time limit", "solution limit"):
        return found
    return solve(program, time_limit=time_limit - share if nodes is None else time_limit, solutions=1, seed=seed)


def _neighbour(operator: Operator, state: State, moment: float, nodes: int, rng: np.random.Generator) -> Array | None:
    """The best solution of the neighbourhood that was found in a ``moment`` of seconds, if any."""
    narrowed = operator(state, rng)
    if narrowed is None:
        return None
    # The current solution lies in most neighbourhoods: the solver then only has to improve on it.
    inside = narrowed.violation(state.current) <= FEASIBLE and narrowed.cost is state.program.cost
    start = state.current if inside else None
    found = solve(narrowed, time_limit=moment, nodes=nodes, start=start, seed=int(rng.integers(2**31))).x
    return found if found is not None and state.program.violation(found) <= FEASIBLE else None


def _closed(value: float, bound: float) -> bool:
    return value <= bound + 1e-9 * max(1.0, abs(bound))


def search_in_parallel(
    program: IntegerProgram,
    configurations: Sequence[Configuration],
    time_limit: float,
    *,
    rounds: int | None = None,
    nodes: int = 500,
    start: Array | None = None,
    seed: int = 0,
) -> tuple[Found, ...]:
    """Search by each configuration in a process of its own, and return what they found, the best first.

    All begin from one first solution, which is sought while the processes start, and then share nothing until the
    end. Configuration ``i`` has the seed ``seed + i``. Other arguments are those of ``search``.

    Raises:
        UsageError: there is no configuration, ``time_limit`` is not above 0, or ``start`` is not feasible.
        NearpeakError: a process died.
    """
    if not configurations:
        raise UsageError("a parallel search needs at least one configuration; CONFIGURATIONS has some")
    if len(configurations) == 1:
        return (search(program, configurations[0], time_limit, rounds=rounds, nodes=nodes, start=start, seed=seed),)
    began = time.monotonic()
    try:
        with ProcessPoolExecutor(len(configurations), mp_context=get_context("spawn")) as processes:
            for _ in configurations:
                processes.submit(_awake)
            first = _first(program, time_limit, None if rounds is None else nodes, start, seed)
            if first.x is None or first.status == "optimal":
                return (_without_search(first, configurations[0].name, time.monotonic() - began),)
            jobs = [
                processes.submit(_improve, program, one, first, began, time_limit, rounds, nodes, seed + i)
                for i, one in enumerate(configurations)
            ]
            found = [job.result() for job in jobs]
    except BrokenExecutor:
        raise NearpeakError("a search process died, most likely for want of memory; use fewer processes") from None
    bound = max(one.bound for one in found)
    return tuple(sorted((replace(one, bound=bound) for one in found), key=lambda one: one.value))


def _awake() -> None:
    """What a process does so that it has started when it is needed."""


def primal_gap(value: float, best: float) -> float:
    """(value - best) / max(|value|, |best|): 0 at the best, 1 without a solution or where signs differ."""
    if not np.isfinite(value) or value * best < 0:
        return 1.0
    return (value - best) / max(abs(value), abs(best), 1e-12)


def _explain(file: str, problem: str, seconds: float, processes: int, seed: int, alone: bool) -> Explanation:
    from nearpeak.search.solvers.integer_problems import PROBLEMS

    if problem not in PROBLEMS:
        raise UnknownName("problem", problem, PROBLEMS, "A file of your own is given by --file.")
    if not 1 <= processes <= len(CONFIGURATIONS):
        raise UsageError(f"processes must be 1 to {len(CONFIGURATIONS)}, the configurations there are, not {processes}")
    program = read(file) if file else PROBLEMS[problem](seed)
    found = search_in_parallel(program, CONFIGURATIONS[:processes], seconds, seed=seed)
    best = found[0]
    if best.x is None:
        raise NearpeakError(f"no solution was found ({best.status}); give it more --seconds, or fewer constraints")
    figures = {
        "value": best.value,
        "bound": best.bound if np.isfinite(best.bound) else None,
        "gap_share": primal_gap(best.value, best.bound) if np.isfinite(best.bound) else None,
        "status": best.status,
    }
    says = [f"The best of {len(found)} searches is {best.value:.6g}, found by {best.configuration}; nothing is below "
            f"{best.bound:.6g}."]  # fmt: skip
    if alone:
        plain = solve(program, time_limit=seconds, threads=processes, seed=seed)
        figures["value_of_highs_alone"] = plain.value
        says.append(f"HiGHS alone, in the same time and with as many threads, finds {plain.value:.6g}.")
    best_at = {one.configuration: one.trace[-1][0] if one.trace else None for one in found}
    arms = Table(
        "Neighbourhoods, by configuration",
        tuple(
            {"configuration": c, "operator": name, "searched": pulls, "mean_reward": rewards[name] / pulls}
            for c, all_pulls, rewards in ((one.configuration, one.pulls, one.rewards) for one in found)
            for name, pulls in all_pulls.items() if pulls
        ),
    )  # fmt: skip
    runs = Table(
        "Searches",
        tuple(
            {"configuration": one.configuration, "value": one.value, "found_time": best_at[one.configuration],
             "rounds": sum(one.pulls.values())}
            for one in found
        ),
    )  # fmt: skip
    return Explanation(figures, (runs, arms) if arms.rows else (runs,), tuple(says))


TOPIC = Topic(
    "integer-program",
    "What is the best solution of a mixed integer program that a solver alone does not close in time?",
    "Cai, Kadioglu and Dilkina, ParBalans: Parallel Multi-Armed Bandits-based Adaptive Large Neighborhood Search, 2025 "
    "(arXiv 2508.06736)",
    (
        Option("file", str, "An MPS or LP file; without it a problem is drawn.", ""),
        Option("problem", str, "What is drawn: placement, assignment, knapsack or cover.", "placement"),
        Option("seconds", float, "Seconds of search.", 10.0),
        Option("processes", int, "Configurations that search in parallel, one process each.", 2),
        Option("seed", int, "Seed of what is drawn and of the search.", 0),
        Option("alone", bool, "Give HiGHS alone the same time and as many threads, for comparison.", False),
    ),
    _explain,
    "--problem placement --seconds 10 --processes 2 --alone",
)
