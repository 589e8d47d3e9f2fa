"""Measured steps of the live engine: what a piggybacked decode costs, who waits how long, tables for the simulator."""

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from nearpeak.decode.comparison import contenders, prompts, random_llama, run  # noqa: E402
from nearpeak.decode.engine import TOPIC  # noqa: E402
from nearpeak.decode.forward import packed  # noqa: E402
from nearpeak.decode.iterations import Clock  # noqa: E402
from nearpeak.decode.step_times import (  # noqa: E402
    Cell,
    StepTimes,
    piggyback,
    step_seconds,
    step_table,
    step_times,
    token_budget,
)
from nearpeak.errors import UsageError  # noqa: E402
from nearpeak.simulate.policies import policy  # noqa: E402
from nearpeak.simulate.steps import chunk_attention, line, mixed_seconds  # noqa: E402
from nearpeak.workload.traffic import Requests  # noqa: E402

torch.set_num_threads(1)


def test_a_piggybacked_decode_costs_at_most_half_of_one_by_itself() -> None:
    """Float32 at a width of 512, in CPU seconds: a step of four decodes reads 50 MB of matrices for them alone."""
    model = random_llama(512, 4, 256)
    with packed(model):
        lone, added = piggyback(model, rows=4, context=64, tile=64, repeats=7, read=time.process_time)
    assert added <= 0.5 * lone


def tails(requests: int, seed: int) -> dict[str, float]:
    """P99 seconds between tokens: long prompts keep coming while others decode."""
    model = random_llama(256, 2, 320)
    draw = np.random.default_rng(seed)
    trace = Requests(np.zeros(requests), draw.integers(150, 250, requests), draw.integers(10, 30, requests))
    text = prompts(trace, 1024, seed)
    with packed(model):
        field = contenders(model, [policy("stall-free", budget=24), policy("prefill-first")], 6, 320)
        found = {name: run(e, trace, text, Clock(time.process_time)) for name, e in field.items()}
    assert all((a == b).all() for a, b in zip(*(r.tokens for r in found.values()), strict=True))
    return {name: float(np.percentile(r.tbt, 99)) for name, r in found.items()}


def test_no_one_waits_for_a_whole_prompt_with_stall_free_batching() -> None:
    p99 = tails(14, 0)
    assert p99["stall-free"] < p99["prefill-first"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_p99_tbt_of_stall_free_batching_is_below_that_of_prefill_first(seed: int) -> None:
    p99 = tails(40, seed)
    assert p99["stall-free"] < 0.7 * p99["prefill-first"]


def by_hand() -> StepTimes:
    """Times that follow a law, so that the table can be told from it: 10 + n + 0.01 B c + 0.002 n p milliseconds."""
    rows, contexts, chunks, prefixes = (np.array(a) for a in ((1, 4, 8), (10, 100, 200), (8, 32, 64), (0, 50, 100)))
    return StepTimes(
        rows, contexts, 1e-3 * (10 + rows[:, None] * (1 + 0.01 * contexts)),
        chunks, prefixes, 1e-3 * (10 + chunks[:, None] * (1 + 0.002 * prefixes)),
        1e-3 * (10 + chunks[:, None] + rows * (1 + 0.01 * 100)),
    )  # fmt: skip


def test_the_table_gives_back_a_law_between_and_beyond_its_points() -> None:
    table = step_table(by_hand(), 8)
    for batch, context in ((1, 10.0), (3, 60.0), (8, 150.0)):
        assert line(table.decode[0], table.knots, batch, context)[0] == pytest.approx(
            1e-3 * (10 + batch * (1 + 0.01 * context)), rel=1e-6
        )
    for batch, context, chunk, prefix in ((1, 100.0, 16, 0.0), (5, 150.0, 20, 70.0), (8, 60.0, 50, 300.0)):
        own = chunk_attention(table, 0, 1, float(chunk), prefix)
        found = mixed_seconds(table, 0, batch + chunk, batch, batch, context, own)
        law = 10 + chunk + batch + 0.01 * batch * context + 0.002 * chunk * prefix
        assert found == pytest.approx(1e-3 * law, rel=0.02)


def test_the_budget_is_the_largest_that_meets_the_goal() -> None:
    # Of 8 decodes at 100 tokens beside a chunk at prefix 100: 10 + n + 8 + 0.2 n milliseconds for a chunk of n.
    times = by_hand()
    assert abs(token_budget(times, 0.050, 8, 100) - (8 + 24 / 1.2)) <= 2
    assert token_budget(times, 0.050, 8, 100, tile=8) == 24
    budgets = [token_budget(times, goal, 8, 100) for goal in (0.03, 0.04, 0.06)]
    assert budgets == sorted(set(budgets))
    with pytest.raises(UsageError, match="take a longer goal"):
        token_budget(times, 0.01, 8, 100)


def test_a_grid_is_measured_by_the_engine_itself() -> None:
    model = random_llama(128, 2, 128)
    with packed(model):
        times = step_times(model, (1, 4), (8, 32), (8, 64), (0, 32), repeats=3)
        with pytest.raises(UsageError, match="prefixes"):
            step_times(model, prefixes=(8, 16))
        with pytest.raises(UsageError, match="nothing to run"):
            step_seconds(model, [Cell()])
        with pytest.raises(UsageError, match="no room"):
            piggyback(model, 8, 16, 8)
    assert times.decode.shape == times.prefill.shape == times.mixed.shape == (2, 2)
    assert min(times.decode.min(), times.prefill.min(), times.mixed.min()) > 0
    assert (step_table(times, 4).decode > 0).all()


def test_the_topic_shows_policies_side_by_side() -> None:
    chosen = {o.name: o.default for o in TOPIC.options} | {
        "policies": ("stall-free", "temporal-fusion"), "requests": 6, "isl": 8.0, "osl": 4.0, "rows": 3, "hidden": 128,
        "layers": 1, "budget": 8,
    }  # fmt: skip
    found = TOPIC.explain(**chosen)
    rows = found.tables[0].rows
    assert [r["policy"] for r in rows] == ["stall-free", "temporal-fusion", "2 instances"]
    assert all(r["identical_tokens"] == "yes" and r["row_moves"] <= 6 for r in rows)
    sized = TOPIC.explain(**chosen | {"policies": ("stall-free",), "tbt": 5.0, "instances": 0, "unchecked": True})
    assert sized.figures["budget"] > 3
    assert sized.tables[0].rows[0]["identical_tokens"] is None
    with pytest.raises(UsageError, match="no folder"):
        TOPIC.explain(**chosen | {"model": "nowhere"})
    with pytest.raises(UsageError, match="hidden 100"):
        TOPIC.explain(**chosen | {"hidden": 100})
