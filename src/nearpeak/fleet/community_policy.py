"""A scheduler of lent cards that is learned: a transformer that scores pairs (Yu et al., REACH, arXiv 2508.12857).

Each pair (task, card) on offer is one element of a sequence, with one more for "decline". A transformer encoder without
positions (the order of the pairs says nothing) sees them all together, and a linear layer gives each its logit. It is
trained by policy gradient, clipped as in PPO (Schulman et al., arXiv 1707.06347). Several runs of one trace differ only
by what the scheduler did, so that the mean of the others at the same moment is the baseline (Mao et al., "Variance
Reduction for Reinforcement Learning in Input-Driven Environments", arXiv 1807.02264):

    reward of a start = value of the task if this attempt ends in its success - network * seconds of transfer
    return at t       = sum over later starts of exp(-(t' - t) / horizon) * reward
    advantage         = return of this run - mean return of the other runs of the trace, at the same time

What it comes to, on 20 unseen traces: ahead of every plain rule, also where it starts from nothing (``head_start`` 0).
Where it starts from the rule ``informed``, as the weights that ship do, a minute or two of training keep it level with
that rule and do not put it ahead.

Needs torch. The weights that ship were made by ``python -m nearpeak.fleet.community_policy``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nearpeak.errors import UsageError
from nearpeak.fleet import community_loop as loop
from nearpeak.fleet.community import RISK, Outcome, log_worth, outcome
from nearpeak.fleet.community_pool import Community, Trace, draw

Array = NDArray[np.float64]

FEATURES, WORTH = 21, 16
"""Numbers of a pair that the network sees, the last of which says "decline"; the place of what ``informed`` goes by."""
COMMAND = "python -m nearpeak.fleet.community_policy"
SHIPPED = Path(__file__).parent / "data" / "community_policy.npz"
"""Weights that come with the package."""


def observe(pairs: Array) -> NDArray[np.float32]:
    """Pairs ``[..., pairs, COLUMNS]`` as the network sees them: ``[..., 1 + pairs, FEATURES]``, "decline" first."""
    column = dict(zip(loop.COLUMNS, np.moveaxis(pairs, -1, 0), strict=True))
    time = column["transfer"] + column["compute"]
    of_pair = (
        column["priority"],
        np.log(column["transfer"] / 600),
        np.log(column["compute"] / 600),
        np.log(time / 600),
        np.log1p(column["slack"] / time),
        np.log1p(column["slack"] / 600),
        4 * np.exp(-time / column["stay"]) - 3,
        np.log1p(column["uptime"] / 3600),
        np.log(column["stay"] / 3600),
        np.log(column["peak"]),
        column["memory"],
        column["attempt"],
        np.log1p(column["contenders"]) - 1,
        np.log1p(column["choices"]) - 1,
        np.log(time / column["task_best"]),
        np.log(time / column["card_best"]),
        4
        + log_worth(*(column[name] for name in ("priority", "transfer", "compute", "slack", "stay", "task_best")))
        - 5 * np.maximum(0.0, time / column["stay"] - RISK),
    )
    of_all = (column["idle"], np.log1p(column["waiting"]) - 2, np.log1p(column["urgent"]) - 1)
    seen = np.zeros((*pairs.shape[:-2], pairs.shape[-2] + 1, FEATURES), np.float32)
    seen[..., 1:, : len(of_pair)] = np.stack(of_pair, -1)
    seen[..., len(of_pair) : -1] = np.stack(of_all, -1)[..., :1, :]
    seen[..., 0, -1] = 1
    return seen


class Scorer(nn.Module):
    """Logits ``[batch, pairs]`` of pairs that see each other, from ``[batch, pairs, FEATURES]``.

    The last layer reads what the encoder says of a pair and, past it, the pair itself. It starts at zero: all pairs are
    alike.
    """

    def __init__(self, width: int = 32, layers: int = 1, heads: int = 2) -> None:
        super().__init__()
        self.enter = nn.Linear(FEATURES, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = nn.Linear(width + FEATURES, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, seen: Tensor, valid: Tensor) -> Tensor:
        """``valid``: ``[batch, pairs]``; what is not is seen by none and has a logit of minus infinity."""
        hidden = self.encoder(self.enter(seen), src_key_padding_mask=~valid)
        logits: Tensor = self.leave(torch.cat((hidden, seen), -1))[..., 0]
        return logits.masked_fill(~valid, -torch.inf)


def _padded(seen: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Sequences of unlike length as one batch, and which elements are valid."""
    count = np.array([s.shape[0] for s in seen])
    valid = np.arange(count.max()) < count[:, None]
    batch = np.zeros((*valid.shape, FEATURES), np.float32)
    batch[valid] = np.concatenate(seen)
    return torch.from_numpy(batch), torch.from_numpy(valid)


def trust(scorer: Scorer, head_start: float) -> None:
    """Start from the rule ``informed``: logits ``head_start`` times its log worth, and a reluctance to decline. What is
    learned is then what to do otherwise (residual policy learning, Silver et al., arXiv 1812.06298).
    """
    with torch.no_grad():
        scorer.leave.weight[0, -FEATURES + WORTH] = head_start
        scorer.leave.weight[0, -1] = -1.5 * head_start


@dataclass(frozen=True)
class Rollout:
    """The decisions of one run: what was seen ``[1 + pairs, FEATURES]`` each, which row was taken, its log-probability,
    when, and its reward; and how the run ended.
    """

    seen: list[NDArray[np.float32]]
    row: NDArray[np.int64]
    logp: Array
    time: Array
    reward: Array
    state: loop.State


@dataclass(frozen=True)
class Training:
    """How the policy is trained.

    Attributes:
        iterations: gradient rounds; traces: drawn anew for each; runs: of each trace, at least 2.
        shrink: size of the pools and number of tasks to learn from, over the community's; what scores pairs does not
            know how many there are.
        urgent: what a task of high priority is worth; another is worth 1. network: what an hour of transfer costs.
        head_start: how far the policy starts from the rule ``informed``; 0: from nothing.
        churn, load: bounds of what a trace's are multiplied with, so that what is learned holds beyond one pool.
        horizon: seconds after which a consequence counts 1/e.
        rate: of Adam at the start, falling linearly to a tenth. gradients: of a round at most, each of ``batch``
            decisions drawn from it. clip: of the probability ratio. entropy: weight of its bonus, falling to zero.
    """

    iterations: int = 16
    traces: int = 2
    runs: int = 6
    shrink: float = 0.5
    urgent: float = 4.0
    network: float = 0.5
    head_start: float = 4.0
    churn: tuple[float, float] = (1.0, 2.0)
    load: tuple[float, float] = (0.75, 1.25)
    horizon: float = 1800.0
    rate: float = 1e-3
    gradients: int = 12
    batch: int = 512
    clip: float = 0.2
    entropy: float = 0.003


@torch.no_grad()
def play(
    scorer: Scorer, traces: Sequence[Trace], generator: torch.Generator | None = None, training: Training | None = None
) -> list[Rollout]:
    """Run traces to their ends side by side. With a ``generator`` rows are drawn by their probability, else the
    likeliest is taken; ``training`` says what rewards are, without it they are left out.
    """
    states, sheets = [loop.begin(t) for t in traces], [loop.sheet(t) for t in traces]
    log: list[list[tuple[Any, ...]]] = [[] for _ in traces]
    going = list(range(len(traces)))
    while True:
        count = {i: loop.offer(traces[i], states[i], sheets[i]) for i in going}
        going = [i for i in going if count[i]]
        if not going:
            break
        counts = np.array([count[i] for i in going])
        seen = observe(np.stack([sheets[i][: counts.max()] for i in going]))
        valid = np.arange(1 + counts.max()) <= counts[:, None]
        logp = torch.log_softmax(scorer(torch.from_numpy(seen), torch.from_numpy(valid)), -1)
        if generator is None:
            rows = logp.argmax(-1)
        else:
            rows = torch.multinomial(logp.exp(), 1, generator=generator).squeeze(-1)
        chosen = logp.gather(1, rows[:, None]).squeeze(1).tolist()
        for k, (i, row) in enumerate(zip(going, rows.tolist(), strict=True)):
            pair = sheets[i][row - 1]
            if training is not None:
                started = (int(pair[loop.TASK]), pair[loop.TRANSFER]) if row else (-1, 0.0)
                log[i].append((seen[k, : 1 + counts[k]].copy(), row, chosen[k], states[i].clock[0], *started))
            loop.take(traces[i], states[i], sheets[i], row - 1)
    return [_rollout(t, s, entries, training) for t, s, entries in zip(traces, states, log, strict=True)]


def _rollout(trace: Trace, state: loop.State, entries: list[tuple[Any, ...]], training: Training | None) -> Rollout:
    seen, row, logp, time, task, transfer = map(list, zip(*entries, strict=True)) if entries else ([],) * 6
    which, started = np.array(task, np.int64), np.array(task) >= 0
    reward = np.zeros(len(task))
    if training is not None:
        # An attempt succeeded if it was the task's last and the task was done.
        last = np.zeros(len(task), bool)
        last[len(task) - 1 - np.unique(which[::-1], return_index=True)[1]] = True
        worth = np.where(trace.priority == 1, training.urgent, 1.0) * (state.status == loop.DONE)
        reward = np.where(started, np.where(last, worth[which], 0.0), 0.0)
        reward -= training.network * np.array(transfer) / 3600
    return Rollout(seen, np.array(row, np.int64), np.array(logp), np.array(time), reward, state)


def advantages(runs: Sequence[Rollout], horizon: float) -> list[Array]:
    """Of the decisions of several runs of one trace, each ``[decisions]``: return above the others' mean then."""
    returns = []
    for run in runs:
        total = np.append(run.reward, 0.0)
        decay = np.exp(-np.diff(run.time) / horizon)
        for i in range(len(decay) - 1, -1, -1):
            total[i] += decay[i] * total[i + 1]
        returns.append(total)

    def at(j: int, when: Array) -> Array:
        then = np.searchsorted(runs[j].time, when)
        ahead = np.append(runs[j].time, np.inf)[then] - when
        return returns[j][then] * np.exp(-ahead / horizon)

    others = range(len(runs))
    return [
        returns[i][:-1] - np.mean([at(j, run.time) for j in others if j != i], axis=0) for i, run in enumerate(runs)
    ]


def train(
    community: Community,
    training: Training | None = None,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> Scorer:
    """A scorer trained on pools and traces drawn from ``community``; ``progress``: told the round and its mean reward.

    Raises:
        UsageError: a count of ``training`` is too small.
    """
    own = training or Training()
    if own.iterations < 1 or own.traces < 1 or own.runs < 2:
        raise UsageError("training takes at least 1 iteration, 1 trace and 2 runs of it (the others are the baseline)")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scorer = Scorer()
    trust(scorer, own.head_start)
    optimizer = torch.optim.Adam(scorer.parameters(), own.rate)
    for round_ in range(own.iterations):
        left = 1 - round_ / own.iterations
        for group in optimizer.param_groups:
            group["lr"] = own.rate * max(left, 0.1)
        drawn = [
            _lesson(community, own, seed * own.iterations * own.traces + round_ * own.traces + i)
            for i in range(own.traces)
        ]
        runs = play(scorer, [t for t in drawn for _ in range(own.runs)], generator, own)
        advantage = np.concatenate(
            [a for i in range(own.traces) for a in advantages(runs[i * own.runs : (i + 1) * own.runs], own.horizon)]
        )
        _improve(scorer, optimizer, runs, advantage, own, own.entropy * left, generator)
        if progress is not None:
            progress(round_ + 1, float(np.mean([run.reward.sum() for run in runs])))
    return scorer


def _lesson(community: Community, training: Training, number: int) -> Trace:
    """A trace to learn from. Odd seeds are for training; comparisons draw from even ones."""
    rng = np.random.default_rng((number, 1))
    own = replace(
        community,
        size=max(1, round(community.size * training.shrink)),
        tasks=max(1, round(community.tasks * training.shrink)),
        churn=community.churn * rng.uniform(*training.churn),
        load=community.load * rng.uniform(*training.load),
    )
    return draw(own, 2 * number + 1)


def _improve(
    scorer: Scorer,
    optimizer: torch.optim.Optimizer,
    runs: Sequence[Rollout],
    advantage: Array,
    own: Training,
    entropy: float,
    generator: torch.Generator,
) -> None:
    """A round's gradient steps."""
    seen = [s for run in runs for s in run.seen]
    row = torch.from_numpy(np.concatenate([run.row for run in runs]))
    before = torch.from_numpy(np.concatenate([run.logp for run in runs])).float()
    gain = torch.from_numpy((advantage - advantage.mean()) / (advantage.std() + 1e-8)).float()
    length = np.array([s.shape[0] for s in seen])
    order = torch.randperm(len(seen), generator=generator).numpy()[: own.gradients * own.batch]
    for first in range(0, order.size, own.batch):
        batch = order[first : first + own.batch]
        optimizer.zero_grad()
        # Sequences of like length together, so that little is padded.
        for some in np.array_split(batch[np.argsort(length[batch], kind="stable")], min(4, batch.size)):
            part = torch.from_numpy(some)
            logits = torch.log_softmax(scorer(*_padded([seen[i] for i in some])), -1)
            ratio = (logits.gather(1, row[part, None]).squeeze(1) - before[part]).exp()
            bounded = ratio.clamp(1 - own.clip, 1 + own.clip)
            surprise = -(logits.exp() * logits.masked_fill(logits == -torch.inf, 0.0)).sum(-1)
            loss = -(torch.minimum(ratio * gain[part], bounded * gain[part]) + entropy * surprise).sum()
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(scorer.parameters(), 0.5)
        optimizer.step()


def evaluate(scorer: Scorer, traces: Sequence[Trace]) -> list[Outcome]:
    """What comes of traces when the likeliest pair is always taken."""
    return [outcome(t, run.state) for t, run in zip(traces, play(scorer, traces), strict=True)]


def save(scorer: Scorer, path: str | Path) -> None:
    """Write the weights as arrays of a .npz file."""
    np.savez_compressed(path, **{name: value.numpy() for name, value in scorer.state_dict().items()})


def load(path: str | Path | None = None) -> Scorer:
    """The scorer of a file that ``save`` wrote; None: the one that ships.

    Raises:
        UsageError: there is no such file, or it holds no weights of a scorer.
    """
    file = Path(path or SHIPPED)
    try:
        with np.load(file) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        scorer = Scorer(len(weights["enter.bias"]))
        scorer.load_state_dict(weights)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(f"{file} holds no trained policy ({error}); make one with {COMMAND} --out FILE") from error
    return scorer


def _main() -> None:
    import argparse
    import time

    parser = argparse.ArgumentParser(prog=COMMAND, description="Train the scheduler of lent cards and save it.")
    parser.add_argument("--out", default=str(SHIPPED), help="file to write")
    parser.add_argument("--iterations", type=int, default=Training.iterations, help="rounds of training")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()

    def progress(done: int, reward: float) -> None:
        spent = time.process_time() - start
        print(f"round {done}/{given.iterations}: reward {reward:.1f} a run, {spent:.0f} s of CPU", flush=True)

    save(train(Community(), Training(iterations=given.iterations), given.seed, progress), given.out)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    _main()
