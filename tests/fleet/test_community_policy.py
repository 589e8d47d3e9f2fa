"""The learned scheduler of lent cards: its parts, its training, and what the weights that ship are worth."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the learned policy needs torch")

from nearpeak.errors import UsageError  # noqa: E402
from nearpeak.fleet import community as pool  # noqa: E402
from nearpeak.fleet import community_loop as loop  # noqa: E402
from nearpeak.fleet import community_policy as policy  # noqa: E402
from nearpeak.fleet.community_pool import Community, draw  # noqa: E402

SMALL = Community(size=8, tasks=40)
QUICK = policy.Training(iterations=2, traces=1, runs=3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_scorer(seed: int = 0) -> policy.Scorer:
    torch.manual_seed(seed)
    scorer = policy.Scorer()
    torch.nn.init.normal_(scorer.leave.weight)
    return scorer


def offered() -> np.ndarray:
    """Many pairs of a running pool."""
    trace = draw(SMALL, 0)
    state, pairs = loop.begin(trace), loop.sheet(trace)
    while (count := loop.offer(trace, state, pairs)) < 6:
        loop.take(trace, state, pairs, -1)
    return pairs[:count].copy()


def test_scores_follow_the_pairs_and_not_their_order():
    pairs, order = offered(), np.random.default_rng(0).permutation(len(offered()))
    scorer = random_scorer()
    every = torch.ones(1, 1 + len(pairs), dtype=torch.bool)
    plain = scorer(torch.from_numpy(policy.observe(pairs))[None], every)[0]
    turned = scorer(torch.from_numpy(policy.observe(pairs[order]))[None], every)[0]
    torch.testing.assert_close(turned[1:], plain[1:][torch.from_numpy(order)], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned[0], plain[0], atol=1e-5, rtol=1e-5)


def test_a_pair_sees_the_others_and_no_padding():
    pairs, scorer = offered(), random_scorer()
    seen = policy.observe(pairs)
    alone, valid = policy._padded([seen])
    beside, both = policy._padded([seen, np.concatenate([seen, seen])])
    torch.testing.assert_close(scorer(beside, both)[0, : len(seen)], scorer(alone, valid)[0], atol=1e-5, rtol=1e-5)
    assert torch.isinf(scorer(beside, both)[0, len(seen) :]).all()
    other = seen.copy()
    other[-1, 0] = 1 - other[-1, 0]
    changed = scorer(torch.from_numpy(other)[None], valid)[0, 1] - scorer(alone, valid)[0, 1]
    assert abs(changed.item()) > 1e-6, "attention carries what other pairs are"


def test_advantages_equal_a_slow_reference():
    rng = np.random.default_rng(0)
    runs = []
    for length in (5, 8, 3):
        time = np.sort(rng.uniform(0, 10, length))
        runs.append(policy.Rollout([], np.zeros(length, int), np.zeros(length), time, rng.normal(size=length), None))

    def value(run, when, first=None):
        later = range(len(run.time)) if first is None else range(first, len(run.time))
        return sum(run.reward[i] * np.exp(-(run.time[i] - when) / 4.0) for i in later if run.time[i] >= when)

    for k, found in enumerate(policy.advantages(runs, 4.0)):
        for i, when in enumerate(runs[k].time):
            others = [value(run, when) for j, run in enumerate(runs) if j != k]
            assert found[i] == pytest.approx(value(runs[k], when, i) - np.mean(others))


def test_rewards_add_up_to_what_was_done():
    trace = draw(replace(SMALL, churn=4), 1)
    training = policy.Training(urgent=3.0, network=0.5)
    (run,) = policy.play(random_scorer(), [trace], torch.Generator().manual_seed(0), training)
    done = run.state.status == loop.DONE
    starts = run.row > 0
    assert (run.state.lost > 0).any()
    assert starts.sum() == done.sum() + run.state.lost.sum()
    worth = (done * np.where(trace.priority == 1, 3.0, 1.0)).sum()
    assert run.reward.sum() < worth
    free = policy.play(
        random_scorer(), [trace], torch.Generator().manual_seed(0), policy.Training(urgent=3.0, network=0.0)
    )[0]
    assert free.reward.sum() == pytest.approx(worth)


def test_traces_side_by_side_are_as_one_by_one():
    drawn, scorer = [draw(SMALL, s) for s in range(4)], random_scorer(1)
    assert policy.evaluate(scorer, drawn) == [policy.evaluate(scorer, [trace])[0] for trace in drawn]


def test_the_same_seed_trains_the_same_policy(tmp_path):
    first, second = policy.train(SMALL, QUICK, 3), policy.train(SMALL, QUICK, 3)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    other = policy.train(SMALL, QUICK, 4)
    assert not torch.equal(other.enter.weight, first.enter.weight)
    policy.save(first, tmp_path / "own.npz")
    drawn = pool.unseen(SMALL, 2)
    assert policy.evaluate(policy.load(tmp_path / "own.npz"), drawn) == policy.evaluate(first, drawn)


def test_policy_gradient_learns_from_nothing():
    """Without the head start the policy begins with all pairs alike; a few rounds make it better on unseen traces."""
    community = Community(size=16, tasks=120)
    training = policy.Training(
        iterations=6, traces=2, runs=8, head_start=0.0, rate=3e-3, shrink=1.0, churn=(1, 1), load=(1, 1)
    )
    drawn = pool.unseen(community, 24)
    generator = torch.Generator().manual_seed(0)
    blank = policy.play(policy.Scorer(), drawn, generator, training)
    taught = policy.play(policy.train(community, training, 0), drawn, generator, training)
    gain = np.array([b.reward.sum() - a.reward.sum() for a, b in zip(blank, taught, strict=True)])
    assert pool.mean_interval(gain)[0] > 0


def figures(found: dict[str, list[pool.Outcome]], name: str) -> dict[str, np.ndarray]:
    return {who: np.array([getattr(o, name) for o in of]) for who, of in found.items()}


ROW = {"completion": 1, "urgent_completion": 1, "bandwidth_penalty": -1}


def require_ahead(found: dict[str, list[pool.Outcome]], names: tuple[str, ...] = tuple(ROW)) -> None:
    """Completion and high priority up, waiting for data down, trace by trace, against all that know no more."""
    for rival in (*pool.PLAIN, "shortest"):
        for name, sign in ((name, ROW[name]) for name in names):
            values = figures(found, name)
            assert pool.mean_interval(sign * (values[pool.LEARNED] - values[rival]))[0] > 0, (rival, name)


@pytest.mark.parametrize("churn", [1.0, 2.0])
def test_the_shipped_policy_is_ahead_on_smaller_unseen_pools(churn):
    found = pool.compare(pool.unseen(Community(size=32, tasks=300, churn=churn), 12))
    # 60 tasks of high priority a trace are too few to tell 2 % apart: the slow test has the whole check.
    require_ahead(found, ("completion", "bandwidth_penalty"))
    assert figures(found, "urgent_completion")[pool.LEARNED].mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("churn", [1.0, 2.0])
def test_the_shipped_policy_is_ahead_on_twenty_unseen_traces_of_64_cards(churn):
    require_ahead(pool.compare(pool.unseen(Community(churn=churn), 20)))


def test_wrong_input_is_named(tmp_path):
    with pytest.raises(UsageError, match="2 runs"):
        policy.train(SMALL, policy.Training(runs=1))
    with pytest.raises(UsageError, match=r"none\.npz"):
        policy.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(UsageError, match=r"other\.npz holds no trained policy"):
        policy.load(tmp_path / "other.npz")


def test_the_topic_says_who_is_ahead():
    asked = {option.name: option.default for option in pool.TOPIC.options} | {"traces": 3, "size": 16, "tasks": 80}
    answer = pool.TOPIC.explain(**asked)
    assert [row["scheduler"] for row in answer.tables[0].rows] == [*pool.RULES, pool.LEARNED]
    assert "informed" in answer.says[1]


@pytest.mark.slow
def test_ten_minutes_of_training_suffice():
    """What the command that made the shipped weights does, with another seed, in CPU seconds of its one thread."""
    import time

    start = time.process_time()
    scorer = policy.train(Community(), seed=1)
    assert time.process_time() - start < 600
    drawn = pool.unseen(Community(), 20)
    require_ahead(pool.compare(drawn, learned=False) | {pool.LEARNED: policy.evaluate(scorer, drawn)})
