"""The live engine under each policy: the same tokens as alone, rows that move at most once, steps as the rule says."""

import itertools
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_engine_forward import tiny_gpt  # noqa: E402

from nearpeak.decode.comparison import alone, contenders, prompts, random_llama, run  # noqa: E402
from nearpeak.decode.forward import packed  # noqa: E402
from nearpeak.decode.iterations import Clock, Engine, Served, serve  # noqa: E402
from nearpeak.decode.slots import Slots  # noqa: E402
from nearpeak.errors import UsageError  # noqa: E402
from nearpeak.simulate.policies import POLICIES, policy  # noqa: E402
from nearpeak.workload.traffic import Requests, Traffic, Uniform, poisson  # noqa: E402

torch.set_num_threads(1)  # more of them stall one another on a machine that others use
ROWS, LENGTH = 5, 64
BUDGET, TILE = 16, 4


def ticking() -> Clock:
    """A clock of which each reading is a millisecond later than the one before: the same run on every machine."""
    count = itertools.count()
    return Clock(lambda: 1e-3 * next(count))


@pytest.fixture(scope="module")
def trace() -> Requests:
    return Traffic(Uniform(3, 40), Uniform(1, 20), poisson(60.0)).sample(24, 3)


@pytest.fixture(scope="module")
def model():
    return random_llama(128, 2, LENGTH, vocabulary=256).double()  # so that rounding decides no tie


def sized(name: str):
    return policy(name, budget=BUDGET, tile=TILE if name == "piggyback" else None)


@pytest.fixture(scope="module")
def runs(model, trace: Requests) -> dict[str, Served]:
    with packed(model):
        field = contenders(model, [sized(name) for name in POLICIES], ROWS, LENGTH, 2)
        return {name: serve(e, trace, prompts(trace, 256, 0), ticking()) for name, e in field.items()}


def step_by_step(model, prompt: np.ndarray, osl: int) -> list[int]:
    """transformers' own greedy loop with its own cache."""
    ids, cache, made = torch.from_numpy(prompt)[None], None, []
    with torch.inference_mode():
        for _ in range(osl):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            made.append(int(ids))
    return made


def test_every_policy_gives_each_request_the_tokens_of_its_solo_run(model, trace, runs: dict[str, Served]) -> None:
    solo = [step_by_step(model, p, n) for p, n in zip(prompts(trace, 256, 0), trace.osl.tolist(), strict=True)]
    assert len({tuple(s[:3]) for s in solo if len(s) > 2}) > 10  # answers differ, so that a mix-up would show
    assert set(runs) == {*POLICIES, "2 instances"}
    for name, served in runs.items():
        assert [t.tolist() for t in served.tokens] == solo, name


def test_an_answer_is_checked_against_the_model_alone(model, trace: Requests, runs: dict[str, Served]) -> None:
    text = prompts(trace, 256, 0)
    answers = runs["stall-free"].tokens
    longest = int(np.argmax(trace.osl))
    assert all(alone(model, p, a) for p, a in zip(text, answers, strict=True))
    wrong = answers[longest].copy()
    wrong[len(wrong) // 2] = (wrong[len(wrong) // 2] + 1) % 256
    assert not alone(model, text[longest], wrong)


def test_a_row_that_moves_without_its_cache_is_noticed(model, trace: Requests, monkeypatch) -> None:
    def forgetful(self: Slots, row: int, tokens: int) -> None:
        self.used -= 1

    monkeypatch.setattr(Slots, "leave", forgetful)
    text = prompts(trace, 256, 0)
    with packed(model):
        served = serve([Engine(model, sized("stall-free"), Slots(ROWS, LENGTH))], trace, text, ticking())
    assert not all(alone(model, p, a) for p, a in zip(text, served.tokens, strict=True))


def test_at_most_one_row_moves_for_each_request_that_ends(trace: Requests, runs: dict[str, Served]) -> None:
    for name, served in runs.items():
        assert served.moves <= len(trace.arrival), name
    assert runs["temporal-fusion"].moves > len(trace.arrival) / 4  # requests do end before others that came later
    assert runs["request-level"].moves == 0  # all of a batch leave together


def test_no_token_is_lost_or_computed_twice(trace: Requests, runs: dict[str, Served]) -> None:
    for name, served in runs.items():
        assert sum(s.prefill for s in served.steps) == trace.isl.sum(), name
        decoded = sum(s.decodes for s in served.steps)
        wanted = (trace.osl - 1).sum()
        assert decoded >= wanted if name in ("request-level", "2 instances") else decoded == wanted, name
        assert [len(t) for t in served.tokens] == trace.osl.tolist()
        for came, times in zip(trace.arrival, served.times, strict=True):
            assert times[0] > came
            assert (np.diff(times) > 0).all()


def test_steps_are_what_the_rules_say(runs: dict[str, Served]) -> None:
    free, first, tile = (runs[name].steps for name in ("stall-free", "prefill-first", "piggyback"))
    assert all(s.decodes == s.running and s.decodes + s.prefill <= BUDGET for s in free)
    assert any(s.decodes and s.prefill for s in free)
    assert all(s.decodes == 0 for s in first if s.prefill)
    assert any(s.running for s in first if s.prefill)  # requests that pause for another's prompt
    mixed = [s.decodes + s.prefill for s in tile if s.decodes and s.prefill]
    assert sum(tokens % TILE == 0 for tokens in mixed) > len(mixed) / 2  # all but the last chunks of prompts
    batches = runs["request-level"].steps
    assert all(s.running == 0 for s in batches if s.prefill)
    assert {s.engine for s in runs["2 instances"].steps} == {0, 1}


def test_the_same_clock_gives_the_same_steps(model, trace: Requests, runs: dict[str, Served]) -> None:
    with packed(model):
        engine = Engine(model, sized("stall-free"), Slots(ROWS, LENGTH))
        again = [serve([engine], trace, prompts(trace, 256, 0), ticking()) for _ in range(2)]
    assert again[0].steps == again[1].steps == runs["stall-free"].steps


def test_bad_requests_are_refused_by_number(model) -> None:
    one = np.ones(2, np.int64)
    with packed(model):
        engine = Engine(model, policy("stall-free"), Slots(2, 8))
        with pytest.raises(UsageError, match="request 1 has 10 tokens"):
            serve([engine], Requests(np.zeros(2), one, one * [3, 9]), [one[:1]] * 2)
        with pytest.raises(UsageError, match="prompt of request 0 has 2 tokens"):
            serve([engine], Requests(np.zeros(2), one, one), [one, one[:1]])
        with pytest.raises(UsageError, match="request 1: 0 tokens"):
            serve([engine], Requests(np.zeros(2), one, one * [1, 0]), [one[:1]] * 2)
        with pytest.raises(UsageError, match="ascending"):
            serve([engine], Requests(np.array([1.0, 0.0]), one, one), [one[:1]] * 2)
    with pytest.raises(UsageError, match="3 instances"):
        contenders(model, [], 2, 8, 3)


def test_a_clock_waits_for_arrivals_or_skips_the_idle_time() -> None:
    for real in (False, True):
        clock, began = Clock(real=real), time.perf_counter()
        clock.wait(clock.now() + 0.2)
        assert clock.now() >= 0.2
        assert (time.perf_counter() - began >= 0.2) == real


def test_flover_ends_sooner_than_batches_and_than_two_instances() -> None:
    """The short form of the slow one: one seed, fewer requests and layers, wider bounds."""
    ratios = flover(36, 0, layers=2)
    assert ratios["request-level"] < 0.8
    assert ratios["2 instances"] < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_flover_takes_half_the_makespan_of_dynamic_batching(seed: int) -> None:
    ratios = flover(128, seed)
    assert ratios["request-level"] <= 0.5
    assert ratios["2 instances"] < 1.0


def flover(requests: int, seed: int, layers: int = 3) -> dict[str, float]:
    """Makespan of temporal fusion over that of the others, in CPU seconds of the one thread: a tiny GPT, Poisson
    arrivals at three times what it serves, most answers short and some long.
    """
    from nearpeak.decode.step_times import capacity
    from nearpeak.workload.traffic import Empirical

    isl, osl, rows = Uniform(4, 24), Empirical((8, 8, 16, 16, 32, 160)), 16
    model = tiny_gpt(layers=layers)
    with packed(model):
        rate = 3 * capacity(model, rows, isl.mean, osl.mean, time.process_time)
        trace = Traffic(isl, osl, poisson(rate)).sample(requests, seed)
        text = prompts(trace, 512, seed)
        field = contenders(model, [policy("temporal-fusion"), policy("request-level")], rows, 184, 2)
        found = {name: run(e, trace, text, Clock(time.process_time)) for name, e in field.items()}
    fused = found["temporal-fusion"]
    assert fused.moves <= requests
    assert all(alone(model, p, a) for p, a in zip(text, fused.tokens, strict=True))
    return {name: fused.makespan / served.makespan for name, served in found.items()}
