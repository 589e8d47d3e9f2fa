"""How the agent of ``memory_agent`` learns from its own games, and what it makes of a trace.

Policy iteration: games on random traces give an improved policy and the outcome at each buffer; the network is fitted
to them (cross-entropy of the policies, and of the share of what was left to gain that the game gained); the next games
are played with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.search.solvers.memory_agent import OF_MOVE, OF_STATE, Network, game, new_tree, untrained
from nearpeak.search.solvers.memory_game import ACTIONS, begin, mapping_of, program_of
from nearpeak.search.solvers.memory_trace import MOVES, Floats, Mapping, Trace, check, random_trace
from nearpeak.topic import Explanation, Option, Table, Topic


@dataclass(frozen=True)
class Lesson:
    """What games taught, by buffer: features; improved policies (-1: not legal); share of what was left that was
    gained.
    """

    of_state: Floats
    of_move: Floats
    policy: Floats
    gained: Floats


def play_game(
    trace: Trace, network: Network, simulations: int, horizon: int, rng: np.random.Generator | None
) -> tuple[Mapping, float, Lesson]:
    """One game: the best mapping that it met, its seconds, what it teaches. Without a generator there is no noise."""
    program, n = program_of(trace), len(trace.step)
    root, state, best = begin(program), begin(program), begin(program)
    noise = np.zeros((n, ACTIONS)) if rng is None else rng.gumbel(size=(n, ACTIONS))
    of_state, of_move = np.zeros((n, OF_STATE)), np.zeros((n, ACTIONS, OF_MOVE))
    policy, left = np.zeros((n, ACTIONS)), np.zeros((n, 2))
    tree = new_tree(simulations)
    game(program, network, root, state, best, tree, horizon, simulations, noise, of_state, of_move, policy, left)
    gained = np.clip((left[:, 1] - root.time[0]) / np.maximum(left[:, 0], 1e-300), 0, 1)
    worth = (left[:, 0] > 1e-9 * left[0, 0]) & ((policy >= 0).sum(1) > 1)
    lesson = Lesson(of_state[worth], of_move[worth], policy[worth], gained[worth])
    return mapping_of(best), float(best.time[0]), lesson


def _gradient(network: Network, lesson: Lesson) -> Network:
    """Of the cross-entropy of the policies and of the values, mean over the rows."""
    n = len(lesson.gained)
    legal = lesson.policy >= 0
    x = np.concatenate([np.broadcast_to(lesson.of_state[:, None], (n, ACTIONS, OF_STATE)), lesson.of_move], axis=2)
    z = x @ network.policy_in + network.policy_bias
    h = np.maximum(z, 0)
    logits = np.where(legal, h @ network.policy_out, -np.inf)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    d = np.where(legal, p - lesson.policy, 0) / n
    dz = d[..., None] * network.policy_out * (z > 0)
    u = lesson.of_state @ network.value_in + network.value_bias
    g = np.maximum(u, 0)
    # A share of little says little: rows count by what is left to gain.
    weight = lesson.of_state[:, 1] ** 2
    e = (1 / (1 + np.exp(-(g @ network.value_out))) - lesson.gained) * weight / max(weight.sum(), 1e-300)
    du = e[:, None] * network.value_out * (u > 0)
    return Network(
        np.einsum("nai,nah->ih", x, dz, optimize=True), dz.sum((0, 1)), np.einsum("na,nah->h", d, h, optimize=True),
        lesson.of_state.T @ du, du.sum(0), g.T @ e,
    )  # fmt: skip


def fit(
    network: Network, lessons: Sequence[Lesson], epochs: int, rng: np.random.Generator, rate: float = 3e-3
) -> Network:
    """The network after some passes over what games taught (Adam, batches of 128)."""
    rows = Lesson(
        *(np.concatenate([getattr(x, f) for x in lessons]) for f in ("of_state", "of_move", "policy", "gained"))
    )  # fmt: skip
    weights = [w.copy() for w in network]
    first, second = ([np.zeros_like(w) for w in weights] for _ in range(2))
    step, n = 0, len(rows.gained)
    total = epochs * -(-n // 128)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(n), -(-n // 128)):
            part = Lesson(rows.of_state[batch], rows.of_move[batch], rows.policy[batch], rows.gained[batch])
            step += 1
            for w, m, v, g in zip(weights, first, second, _gradient(Network(*weights), part), strict=True):
                m += 0.1 * (g - m)
                v += 0.01 * (g * g - v)
                w -= rate * (1 - step / (total + 1)) * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    return Network(*weights)


def learn(
    seed: int, rounds: int = 6, games: int = 48, simulations: int = 32, horizon: int = 16, traces: Sequence[Trace] = ()
) -> Network:
    """A network that learned from its own games on random traces, and on ``traces`` where there are any.

    Args:
        seed: of traces, noise and weights. rounds: of playing ``games`` games and fitting. simulations: per move.
        horizon: moves that a new node's value plays on before it trusts the network's.
    """
    rng = np.random.default_rng(seed)
    network = untrained(seed)
    lessons: list[Lesson] = []
    for _ in range(rounds):
        for g in range(games):
            buffers = int(rng.integers(120, 200)) if g % 8 == 0 else int(rng.integers(12, 40))
            own = traces[int(rng.integers(len(traces)))] if traces and g % 2 else None
            trace = random_trace(buffers, int(rng.integers(2**31)), rng.uniform(1.5, 5)) if own is None else own
            lessons.append(play_game(trace, network, simulations, horizon, rng)[2])
        network = fit(network, lessons[-3 * games :], 6, rng)
    return network


def solve(
    trace: Trace, network: Network, seed: int = 0, simulations: int = 64, games: int = 32, horizon: int = 32
) -> tuple[Mapping, float]:
    """The best of ``games`` games, the first without noise: the mapping and its seconds."""
    rng = np.random.default_rng(seed)
    played = [play_game(trace, network, simulations, horizon, None if g == 0 else rng)[:2] for g in range(games)]
    return min(played, key=lambda m: m[1])


def read(path: str) -> Trace:
    """A trace of a JSON file: ``capacity``, ``slow`` and ``fast`` bandwidths, and ``steps``, each with ``compute``
    seconds and ``reads`` and ``writes``, bytes by the tensor's name; ``outputs`` names tensors that are read after the
    program.

    Raises:
        UsageError: there is no such file, it is no such JSON, or the trace is impossible.
    """
    if not Path(path).is_file():
        raise UsageError(f"no file {path!r}: give a trace in JSON")
    try:
        told = json.loads(Path(path).read_text())
        outputs, numbers, rows = set(told.get("outputs", ())), dict[str, int](), []
        for t, step in enumerate(told["steps"]):
            for write, part in ((False, "reads"), (True, "writes")):
                for name, size in step.get(part, {}).items():
                    rows.append((t, numbers.setdefault(name, len(numbers)), int(size), write, name in outputs))
        compute = np.array([float(step.get("compute", 0)) for step in told["steps"]])
        limits = int(told["capacity"]), float(told["slow"]), float(told["fast"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path} is no trace ({type(error).__name__}: {error}); it needs capacity, slow, fast and steps with "
            "compute, reads and writes"
        ) from None
    table = np.array(rows, np.int64).reshape(-1, 5)
    step, tensor, size = table[:, 0], table[:, 1], table[:, 2]
    return Trace(compute, step, tensor, size, table[:, 3] > 0, table[:, 4] > 0, *limits)


def _explain(
    trace: str, buffers: int, pressure: float, games: int, simulations: int, optimum: bool, seed: int
) -> Explanation:
    from nearpeak.search.solvers.memory_exact import greedy
    from nearpeak.search.solvers.memory_exact import solve as solve_exactly
    from nearpeak.search.solvers.memory_game import seconds

    program = read(trace) if trace else random_trace(buffers, seed, pressure)
    all_slow = float(begin(program_of(program)).time[0])
    found, time = solve(program, learn(seed), seed, simulations, games)
    check(program, found)
    others = {name: seconds(program, mapping) for name, mapping in greedy(program).items()}
    first = min(others, key=others.__getitem__)
    lines = others | {"agent": time}
    if optimum:
        lines["optimum"] = seconds(program, solve_exactly(program))
    moves = [MOVES[m] for m in found.move.tolist()]
    return Explanation(
        {
            "buffers": len(program.step),
            "fast_memory": program.capacity,
            "slow_only_time": all_slow,
            "greedy_time": others[first],
            "agent_time": time,
            "saved_share": 1 - time / all_slow,
        },
        (
            Table("Seconds by mapping", tuple({"mapping": name, "program_time": t} for name, t in lines.items())),
            Table.of(
                "Moves of the agent",
                buffer=np.arange(len(moves)), step=program.step, tensor=program.tensor, size_memory=program.size,
                access=np.where(program.write, "write", "read"), move=moves, held_from_step=found.start,
                offset=found.offset,
            ),
        ),
        (
            f"The agent's mapping takes {time / all_slow:.3f} of the time of slow memory alone, and "
            f"{time / others[first]:.3f} of the best greedy mapping's ({first}).",
        ),
    )  # fmt: skip


TOPIC = Topic(
    "memory-map",
    "Which tensors belong into a small fast memory, when, and at which offset?",
    "Wang et al., Optimizing Memory Mapping Using Deep Reinforcement Learning, 2023 (arXiv 2305.07440)",
    (
        Option("trace", str, "A trace in JSON; without one, a random one.", ""),
        Option("buffers", int, "Accesses of the random trace.", 24),
        Option(
            "pressure",
            float,
            "Bytes of tensors over bytes of fast memory of the random trace, for each 20 buffers.",
            3.0,
        ),
        Option("games", int, "Games that the agent plays; the best counts.", 32),
        Option("simulations", int, "Simulations of the tree search per move.", 64),
        Option("optimum", bool, "Solve the integer program too (small traces).", False),
        Option("seed", int, "Of the trace, the network and the games.", 0),
    ),
    _explain,
    "--buffers 24 --optimum",
)
