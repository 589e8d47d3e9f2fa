"""The simulator against the live engine: the same steps when both know the time, the same figures by the clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from nearpeak.decode import iterations  # noqa: E402
from nearpeak.decode.comparison import contenders, prompts, random_llama, run  # noqa: E402
from nearpeak.decode.forward import Step, packed  # noqa: E402
from nearpeak.decode.iterations import Clock  # noqa: E402
from nearpeak.decode.step_times import StepTimes, capacity, step_table, step_times  # noqa: E402
from nearpeak.simulate.policies import POLICIES, Policy, policy  # noqa: E402
from nearpeak.simulate.results import Result  # noqa: E402
from nearpeak.simulate.serving import Deployment, Instances, feed, serve  # noqa: E402
from nearpeak.simulate.steps import CHUNKS, MOST_ROWS, PROMPTS, StepTable, constant_table  # noqa: E402
from nearpeak.workload.traffic import Requests  # noqa: E402

torch.set_num_threads(1)
ROWS, LENGTH = 6, 320


def trace(n: int, rate: float, seed: int) -> Requests:
    draw = np.random.default_rng(seed)
    return Requests(np.cumsum(draw.exponential(1 / rate, n)), draw.integers(60, 180, n), draw.integers(10, 40, n))


def simulated(table: StepTable, rule: Policy, requests: Requests) -> Result:
    """Of an engine whose cache has rows and nothing else to run out of, and finds nothing again."""
    one = Deployment(table, (Instances(0, 1, ROWS, 1 << 30),), rule, block=1, caching=False)
    return serve(one, feed(requests.arrival, requests.isl, requests.osl))


# A law of step times for both: the engine has a clock that only its forward pass moves, the simulator a table.

STEP, TOKEN, READ, BEFORE = 10e-3, 0.2e-3, 1e-5, 1e-6
"""Seconds of a step, of a token in it, of a token that a decode attends to, of a pair of a chunk's and a prefix's."""


def law_table(read: float) -> StepTable:
    batch, knots = np.arange(ROWS + 1)[:, None], np.array([1.0, 1024.0])
    decode = STEP + batch * (TOKEN + read * knots)
    pairs = BEFORE * np.outer(CHUNKS, np.append(0.0, CHUNKS))
    return constant_table(0.0, ROWS)._replace(
        knots=knots,
        decode=decode[None],
        rows=(STEP + TOKEN * np.arange(MOST_ROWS + 1))[None],
        attend=(batch * read * knots)[None],
        prefill=(PROMPTS[:, None, None] * pairs)[None],
    )


class Lawful:
    """The forward pass, and a clock that it moves by the law."""

    def __init__(self, forward: Callable[..., Any], read: float) -> None:
        self.forward, self.read, self.now = forward, read, 0.0

    def logits(self, model: Any, step: Step, ids: Any, keep: Any) -> Any:
        attended = step.position[: step.decodes] + 1
        pairs = sum((c.last - c.first) * int(step.position[c.first]) for c in step.chunks)
        self.now += STEP + TOKEN * len(step.position) + self.read * int(attended.sum()) + BEFORE * pairs
        return self.forward(model, step, ids, keep)


@pytest.mark.parametrize("name", POLICIES)
def test_the_simulator_runs_the_steps_of_the_live_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = trace(40, 12.0, 1)
    chunked = name in ("stall-free", "piggyback")
    rule = policy(name, budget=48 if chunked else 256, tile=16 if name == "piggyback" else None)
    # Requests of a padded batch that have ended attend to their own tokens in the engine, in the simulator to as many
    # as the others; without that time, the steps are the same.
    read = 0.0 if name == "request-level" else READ
    law = Lawful(iterations.logits, read)
    monkeypatch.setattr(iterations, "logits", law.logits)
    model = random_llama(128, 1, LENGTH)
    with packed(model):
        live = run(contenders(model, [rule], ROWS, LENGTH)[name], requests, prompts(requests, 1024, 0),
                   Clock(lambda: law.now))  # fmt: skip
    found = simulated(law_table(read), rule, requests)
    assert found.requests is not None
    last = np.array([t[-1] for t in live.times]) - requests.arrival
    np.testing.assert_allclose(found.requests["ttft"], live.ttft, rtol=1e-6)
    np.testing.assert_allclose(found.requests["latency"], last, rtol=1e-6)
    for q in (50, 90, 99):  # steps that follow one another unchanged count with their mean in the simulator
        assert found.sketches["gap"].percentile(q) == pytest.approx(
            np.percentile(live.tbt, q, method="inverted_cdf"), rel=0.015
        )


# By the clock.


def between(rounds: Sequence[StepTimes]) -> StepTimes:
    """Medians over rounds of the same grid."""
    last = rounds[-1]
    middle = {name: np.median([getattr(r, name) for r in rounds], axis=0) for name in ("decode", "prefill", "mixed")}
    return replace(last, **middle)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_simulated_times_between_tokens_are_those_of_the_live_engine(seed: int) -> None:
    """CPU seconds. Measured steps and served requests take turns, so that what slows the machine slows both alike."""
    model, rules = random_llama(256, 2, LENGTH), (policy("stall-free", budget=48), policy("prefill-first", budget=256))
    read = time.process_time
    measured: list[StepTimes] = []
    gaps: dict[str, list[np.ndarray]] = {rule.name: [] for rule in rules}
    with packed(model):
        requests = trace(30, 0.7 * capacity(model, ROWS, 120, 25, read), seed)
        text = prompts(requests, 1024, seed)
        for _ in range(9):
            for name, engines in contenders(model, rules, ROWS, LENGTH).items():
                measured.append(step_times(model, (1, 3, 6), (16, 96, 240), (4, 16, 48, 180), (0, 140), 1, read))
                gaps[name].append(run(engines, requests, text, Clock(read)).tbt)
    table = step_table(between(measured), ROWS)
    p99 = {}
    for rule in rules:
        gap = simulated(table, rule, requests).sketches["gap"]
        live = float(np.median([np.median(g) for g in gaps[rule.name]]))
        p99[rule.name] = float(np.median([np.percentile(g, 99) for g in gaps[rule.name]])), gap.percentile(99)
        print(f"seed {seed}, {rule.name}: median {live * 1e3:.2f} ms live, simulated {gap.percentile(50) / live:.2f}x; "
              f"P99 {p99[rule.name][0] * 1e3:.1f} ms live, {p99[rule.name][1] * 1e3:.1f} ms simulated")  # fmt: skip
        assert gap.percentile(50) == pytest.approx(live, rel=0.2)
    for free, first in zip(p99["stall-free"], p99["prefill-first"], strict=True):
        assert free < first
