"""An agent that plays the memory game of ``memory_game``: tree search guided by a policy and value network.

Search is Gumbel MuZero's (Danihelka et al., "Policy improvement by planning with Gumbel", ICLR 2022) with the true
simulator for its model. At the root, sequential halving shares the simulations among the moves that are best by
``Gumbel noise + logit + sigma(q)``; below it, the move is taken that is furthest behind the improved policy
``softmax(logit + sigma(q))``. A reward is the share of all that could be gained which a move gains. The network sees
one row of features per legal move (a logit each) and one of the state (the share of what is left to gain that will be).
All features are ratios, so that what is learned on small traces applies to long ones. It learns from its own games: the
logits go to the improved policies and the values to the outcomes.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from nearpeak.search.solvers.memory_game import ACTIONS, Program, State, copy_into, move_of, options, play
from nearpeak.search.solvers.memory_trace import COPY, KEEP, LEAVE, Floats, Ints

OF_STATE, OF_MOVE, HIDDEN = 12, 16, 32
VISITS, SCALE = 50.0, 0.1
"""Of ``sigma(q) = (VISITS + most visits) SCALE q``, as Danihelka et al. set them."""
NEAR = 8
"""Steps around the present that features of the state look at."""


class Network(NamedTuple):
    """Two perceptrons of one hidden layer: ``[OF_STATE + OF_MOVE] -> logit`` of a move, ``[OF_STATE] -> value``."""

    policy_in: Floats
    policy_bias: Floats
    policy_out: Floats
    value_in: Floats
    value_bias: Floats
    value_out: Floats


def untrained(seed: int) -> Network:
    """A network that knows nothing: all moves alike."""
    rng = np.random.default_rng(seed)
    wide = OF_STATE + OF_MOVE
    return Network(
        rng.normal(size=(wide, HIDDEN)) / np.sqrt(wide), np.zeros(HIDDEN), np.zeros(HIDDEN),
        rng.normal(size=(OF_STATE, HIDDEN)) / np.sqrt(OF_STATE), np.zeros(HIDDEN), np.zeros(HIDDEN),
    )  # fmt: skip


@njit(cache=True)
def potential(program: Program, state: State) -> float:
    """Seconds that could still be gained: what undecided steps take above reading fast memory only."""
    b, total = state.count[0], 0.0
    if b < len(program.step):
        for t in range(program.step[b], len(program.compute)):
            total += max(state.load[t, 3] - program.floor[t], 0.0)
    return total


@njit(cache=True)
def describe(
    program: Program, state: State, table: Ints, left: float, whole: float, of_state: Floats, of_move: Floats
) -> None:
    """Features of the state ``[OF_STATE]`` and of each legal move ``[ACTIONS, OF_MOVE]``."""
    n, steps, b = len(program.step), len(program.compute), state.count[0]
    t, size, capacity = program.step[b], float(program.size[b]), float(program.capacity)
    used_now = used_soon = used_past = 0.0
    for i in range(state.count[1]):
        _, s, first, last = state.block[i]
        if first <= t <= last:
            used_now += s
        if first <= t + 2 <= last:
            used_soon += s
        if first <= t - 2 <= last:
            used_past += s
    spare = near = 0.0
    for k in range(max(t - NEAR, 0), t):
        spare += state.load[k, 2]
    ahead = asked = 0.0
    end = min(t + NEAR, steps)
    for k in range(t, end):
        ahead += max(state.load[k, 3] - program.floor[k], 0.0) / max(state.load[k, 3], 1e-300)
        near += state.load[k, 0]
        asked += max(state.load[k, 3] * program.slow - state.load[k, 0], 0.0)
    of_state[0] = 1.0
    of_state[1] = left / whole
    of_state[2] = 1.0 - b / n
    of_state[3] = used_now / capacity
    of_state[4] = used_soon / capacity
    of_state[5] = used_past / capacity
    of_state[6] = min(spare / capacity, 3.0)
    of_state[7] = ahead / (end - t)
    of_state[8] = min(near / capacity, 5.0) / 2
    of_state[9] = min(asked / capacity, 3.0)
    of_state[10] = 1.0 / (1.0 + 0.1 * (n - b))
    of_state[11] = max(state.load[t, 3] - program.floor[t], 0.0) / max(state.load[t, 3], 1e-300)
    # What fast reads of the tensor would gain at most, now and later, over the time that slow memory takes for it.
    now = min(size / program.slow, max(state.load[t, 3] - program.floor[t], 0.0)) * program.slow / size
    later, uses, c, gap = 0.0, 0, program.following[b], 0
    if c >= 0:
        gap = program.step[c] - t
    while c >= 0:
        k = program.step[c]
        later += min(size / program.slow, max(state.load[k, 3] - program.floor[k], 0.0)) * program.slow / size
        uses += 1
        c = program.following[c]
    next_gain = 0.0
    if program.following[b] >= 0:
        k = program.step[program.following[b]]
        next_gain = min(size / program.slow, max(state.load[k, 3] - program.floor[k], 0.0)) * program.slow / size
    for a in range(ACTIONS):
        if not table[a, 0]:
            continue
        move, row, first = move_of(a), of_move[a], table[a, 1]
        row[:] = 0.0
        row[0] = move == LEAVE
        row[1] = move == KEEP
        row[2] = move == COPY
        row[3] = program.write[b]
        fast = 0.0 if move == LEAVE else 1.0
        row[4] = fast * size / capacity
        row[5] = fast * now
        row[6] = fast * min(later, 4.0)
        row[7] = fast * next_gain
        row[8] = fast / (1.0 + gap) if gap else 0.0
        row[9] = fast * (program.last[b] == t)
        row[10] = fast * (a == 2 or a == 4 or a == 6 or a == 8)
        if move == COPY and not program.write[b]:
            hidden = 0.0
            for k in range(first, t):
                hidden += state.load[k, 2]
            wait = 1.0 - min(hidden / size, 1.0)
            row[11] = now - wait
            row[12] = wait
            row[13] = np.log1p(t - first)
            row[14] = size * (t - first) / capacity
        elif move == KEEP and program.write[b]:
            row[11] = now
            row[13] = np.log1p(program.last[b] - t)
            row[14] = size * (program.last[b] - t) / capacity
        elif move == KEEP:
            row[11] = now
            row[13] = np.log1p(t - program.step[program.previous[b]])
            row[14] = size * (t - program.step[program.previous[b]]) / capacity
        row[15] = (row[11] + fast * later) * size / (size + capacity * 0.1)


@njit(cache=True)
def judge(network: Network, of_state: Floats, of_move: Floats, table: Ints, logits: Floats) -> float:
    """Logits of the legal moves (``-inf`` for others) into ``logits``; returns the value of the state in 0 .. 1."""
    value = 0.0
    for h in range(HIDDEN):
        z = network.value_bias[h]
        for i in range(OF_STATE):
            z += of_state[i] * network.value_in[i, h]
        value += max(z, 0.0) * network.value_out[h]
    shared = network.policy_bias.copy()
    for i in range(OF_STATE):
        for h in range(HIDDEN):
            shared[h] += of_state[i] * network.policy_in[i, h]
    for a in range(ACTIONS):
        logits[a] = -np.inf
        if table[a, 0]:
            hidden = shared.copy()
            for i in range(OF_MOVE):
                x = of_move[a, i]
                if x != 0.0:
                    for h in range(HIDDEN):
                        hidden[h] += x * network.policy_in[OF_STATE + i, h]
            total = 0.0
            for h in range(HIDDEN):
                total += max(hidden[h], 0.0) * network.policy_out[h]
            logits[a] = total
    return float(1.0 / (1.0 + np.exp(-value)))


class Tree(NamedTuple):
    """Nodes of a search: by node and move, the child (-1: none), options, visits, returns, logit; the value."""

    child: Ints
    table: Ints
    visits: Ints
    returns: Floats
    logits: Floats
    value: Floats
    size: Ints


def new_tree(simulations: int) -> Tree:
    """Room for a root and one node per simulation."""
    n = simulations + 1
    return Tree(
        np.zeros((n, ACTIONS), np.int64), np.zeros((n, ACTIONS, 3), np.int64), np.zeros((n, ACTIONS), np.int64),
        np.zeros((n, ACTIONS)), np.zeros((n, ACTIONS)), np.zeros(n), np.zeros(1, np.int64),
    )  # fmt: skip


@njit(cache=True)
def likeliest(logits: Floats) -> int:
    """The move of the highest logit."""
    best = 0
    for a in range(1, ACTIONS):
        if logits[a] > logits[best]:
            best = a
    return best


@njit(cache=True)
def keep_best(best: State, state: State) -> None:
    """Remember a finished game if it is faster than ``best``, or the first."""
    if best.count[0] < len(best.choice) or state.time[0] < best.time[0]:
        copy_into(best, state)


@njit(cache=True)
def add_node(
    program: Program, network: Network, state: State, best: State, tree: Tree, whole: float, horizon: int,
    of_state: Floats, of_move: Floats,
) -> int:  # fmt: skip
    """Put the state into the tree. Its value: what the policy's likeliest moves gain within the horizon, then the
    network's guess. ``state`` is used up; a game that is thus ended, and is the fastest so far, goes to ``best``.
    """
    node, n = tree.size[0], len(program.step)
    tree.size[0] += 1
    for a in range(ACTIONS):
        tree.child[node, a] = -1
        tree.visits[node, a] = 0
        tree.returns[node, a] = 0.0
    table, logits = tree.table[node], tree.logits[node]
    options(program, state, table)
    left = potential(program, state)
    describe(program, state, table, left, whole, of_state, of_move)
    value = judge(network, of_state, of_move, table, logits) * left
    if horizon > 0:
        table, logits, gained = table.copy(), logits.copy(), 0.0
        for _ in range(horizon):
            a = likeliest(logits)
            gained += play(program, state, move_of(a), table[a, 1], table[a, 2])
            if state.count[0] == n:
                break
            options(program, state, table)
            left = potential(program, state)
            describe(program, state, table, left, whole, of_state, of_move)
            value = judge(network, of_state, of_move, table, logits) * left
        if state.count[0] == n:
            value = 0.0
            keep_best(best, state)
        value += gained
    tree.value[node] = value / whole
    return int(node)


@njit(cache=True)
def improved(tree: Tree, node: int, even: float, policy: Floats, sigma: Floats) -> None:
    """``sigma(q)`` of each move, unvisited ones at the node's mixed value, and the improved policy.

    Values are measured by the spread of the node's, or by ``even``, a buffer's even share of all gains, if that is
    more: moves that matter less than that are left to the network.
    """
    legal = tree.table[node, :, 0]
    visits, logits = tree.visits[node], tree.logits[node]
    top = -np.inf
    for a in range(ACTIONS):
        if legal[a]:
            top = max(top, logits[a])
    seen, mass, mean, most = 0, 0.0, 0.0, 0
    for a in range(ACTIONS):
        if legal[a] and visits[a]:
            prior = np.exp(logits[a] - top)
            seen += visits[a]
            mass += prior
            mean += prior * tree.returns[node, a] / visits[a]
            most = max(most, visits[a])
    mixed = tree.value[node]
    if seen:
        mixed = (mixed + seen * mean / max(mass, 1e-300)) / (1 + seen)
    low, high = np.inf, -np.inf
    for a in range(ACTIONS):
        if legal[a]:
            sigma[a] = tree.returns[node, a] / visits[a] if visits[a] else mixed
            low, high = min(low, sigma[a]), max(high, sigma[a])
    peak = -np.inf
    for a in range(ACTIONS):
        if legal[a]:
            sigma[a] = (VISITS + most) * SCALE * (sigma[a] - low) / max(high - low, even)
            peak = max(peak, logits[a] + sigma[a])
    total = 0.0
    for a in range(ACTIONS):
        policy[a] = np.exp(logits[a] + sigma[a] - peak) if legal[a] else 0.0
        total += policy[a]
    policy /= total


@njit(cache=True)
def simulate(
    program: Program, network: Network, state: State, best: State, tree: Tree, whole: float, horizon: int, action: int,
    of_state: Floats, of_move: Floats,
) -> None:  # fmt: skip
    """One simulation that begins with a move of the root; ``state`` is the root's, and is used up."""
    n = len(program.step)
    path, moves, rewards = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n)
    policy, sigma = np.empty(ACTIONS), np.empty(ACTIONS)
    node, depth, value = 0, 0, 0.0
    while True:
        first, offset = tree.table[node, action, 1], tree.table[node, action, 2]
        path[depth], moves[depth] = node, action
        rewards[depth] = play(program, state, move_of(action), first, offset) / whole
        depth += 1
        if state.count[0] == n:
            keep_best(best, state)
            break
        if tree.child[node, action] < 0:
            new = add_node(program, network, state, best, tree, whole, horizon, of_state, of_move)
            tree.child[node, action] = new
            value = tree.value[new]
            break
        node = tree.child[node, action]
        improved(tree, node, 1.0 / n, policy, sigma)
        total, most = 1, -np.inf
        for a in range(ACTIONS):
            total += tree.visits[node, a]
        for a in range(ACTIONS):
            behind = policy[a] - tree.visits[node, a] / total
            if tree.table[node, a, 0] and behind > most:
                action, most = a, behind
    for d in range(depth - 1, -1, -1):
        value += rewards[d]
        tree.visits[path[d], moves[d]] += 1
        tree.returns[path[d], moves[d]] += value


@njit(cache=True)
def search(
    program: Program, network: Network, root: State, state: State, best: State, tree: Tree, whole: float, horizon: int,
    simulations: int, noise: Floats, policy: Floats, of_state: Floats, of_move: Floats,
) -> int:  # fmt: skip
    """The move that sequential halving ends with; the improved policy of the root goes to ``policy``."""
    tree.size[0] = 0
    copy_into(state, root)
    add_node(program, network, state, best, tree, whole, horizon, of_state, of_move)
    sigma, score, inside = np.zeros(ACTIONS), np.empty(ACTIONS), np.empty(ACTIONS, np.int64)
    held = 0
    for a in range(ACTIONS):
        inside[a] = tree.table[0, a, 0]
        held += inside[a]
    rounds, spent, winner = max(1, int(np.ceil(np.log2(held)))), 0, likeliest(tree.logits[0])
    while held > 1 and spent < simulations:
        for _ in range(max(1, simulations // (rounds * held))):
            for a in range(ACTIONS):
                if inside[a] and spent < simulations:
                    copy_into(state, root)
                    simulate(program, network, state, best, tree, whole, horizon, a, of_state, of_move)
                    spent += 1
        improved(tree, 0, 1.0 / len(program.step), policy, sigma)
        stay, held = (held + 1) // 2, 0
        for a in range(ACTIONS):
            score[a] = noise[a] + tree.logits[0, a] + sigma[a] if inside[a] else -np.inf
            inside[a] = 0
        while held < stay:
            a = likeliest(score)
            winner = a if held == 0 else winner
            score[a], inside[a] = -np.inf, 1
            held += 1
    improved(tree, 0, 1.0 / len(program.step), policy, sigma)
    return winner


@njit(cache=True)
def game(
    program: Program, network: Network, root: State, state: State, best: State, tree: Tree, horizon: int,
    simulations: int, noise: Floats, kept_state: Floats, kept_move: Floats, kept_policy: Floats, kept_left: Floats,
) -> None:  # fmt: skip
    """Play ``root`` to its end; what was seen at each buffer goes to ``kept_*`` ``[buffers, ...]``."""
    whole = max(potential(program, root), 1e-300)
    of_state, of_move = np.zeros(OF_STATE), np.zeros((ACTIONS, OF_MOVE))
    for b in range(len(program.step)):
        action = search(
            program, network, root, state, best, tree, whole, horizon, simulations, noise[b], kept_policy[b], of_state,
            of_move,
        )  # fmt: skip
        kept_left[b, 0], kept_left[b, 1] = potential(program, root), root.time[0]
        table = tree.table[0]
        describe(program, root, table, kept_left[b, 0], whole, kept_state[b], kept_move[b])
        for a in range(ACTIONS):
            if not table[a, 0]:
                kept_policy[b, a] = -1.0
        play(program, root, move_of(action), table[action, 1], table[action, 2])
    keep_best(best, root)
