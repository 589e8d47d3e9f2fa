import math
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from nearpeak.bounds.hybrid_moe import LIMITS, Case, case_of, estimate, ideal, weight_bytes
from nearpeak.errors import UsageError
from nearpeak.hardware import node_of
from nearpeak.workload import read

LAYERS = 8


def pages_of(tokens, page):
    return math.ceil(tokens / page)


def simulate(case, seed):
    """Output tokens/s of an event-by-event run: three resources, layers double-buffered, requests in two groups.

    Lengths vary by request. A request is admitted when the long-run rate allows and its prompt's pages are free (all at
    once where all fit); where a running request finds no page, the newest one loses its cache and starts again.
    """
    rng = np.random.default_rng(seed)
    n = int(case.requests)
    isl = np.maximum(1, np.rint(case.isl * rng.uniform(0.75, 1.25, n))).astype(int)
    osl = np.maximum(1, np.rint(case.osl * rng.uniform(0.75, 1.25, n))).astype(int)
    page, total = int(case.page), int(case.cache // (case.kv * case.page))
    life = [sum(pages_of(p + i + 1, page) for i in range(g)) for p, g in zip(isl[:200], osl[:200], strict=True)]
    rate = max(total / np.mean(life), 1 / np.mean(osl))

    if total >= sum(pages_of(p + g, page) for p, g in zip(isl, osl, strict=True)):
        rate = n  # all fit

    waiting, running = deque(range(n)), []
    done, used, credit = np.zeros(n, int), np.zeros(n, int), 0.0
    free = total
    clock = Pipeline(case)
    answered = 0
    while waiting or running:
        credit += rate
        prompts = []
        while (
            waiting
            and (credit >= 1 or not running + prompts)
            and free >= pages_of(isl[waiting[0]] + done[waiting[0]] + 1, page)
        ):
            credit -= 1
            new = waiting.popleft()
            used[new] = pages_of(isl[new] + done[new] + 1, page)
            free -= used[new]
            prompts.append(new)
        assert prompts or running, "no request ever fits"
        clock.iteration([isl[r] + done[r] for r in running], [isl[r] + done[r] for r in prompts])
        running += prompts
        for r in list(running):
            if r not in running:
                continue  # it was evicted for another one
            done[r] += 1
            if done[r] >= osl[r]:
                free += used[r]
                answered += osl[r]
                running.remove(r)
                continue
            needed = pages_of(isl[r] + done[r] + 1, page)
            while needed > used[r]:
                if free == 0:
                    newest = running.pop()
                    free += used[newest]
                    waiting.appendleft(newest)
                    if newest == r:
                        break
                    continue
                free -= 1
                used[r] += 1
    return answered / clock.now


class Pipeline:
    """Link, GPU and host of one run, each busy until some time."""

    def __init__(self, case):
        self.case = case
        self.link = self.gpu = self.host = 0.0
        self.freed = deque([0.0, 0.0], maxlen=2)  # when the two buffers of weights were last used

    @property
    def now(self):
        return max(self.gpu, self.host)

    def iteration(self, contexts, prompts):
        c = self.case
        halves = (contexts[::2], contexts[1::2])
        tokens = [len(h) * c.flops / c.rate / LAYERS for h in halves]
        prefill = sum(prompts) * c.flops / c.rate + sum(c.prompt_flops * (p / c.isl) ** 2 for p in prompts) / c.rate
        attend = [sum(h) * c.kv / c.host_bandwidth / LAYERS for h in halves]
        finished = [self.gpu, self.gpu]
        attended = [0.0, 0.0]
        for layer in range(LAYERS + 1):
            if layer < LAYERS:
                self.link = max(self.link, self.freed[0]) + c.streamed / c.link / LAYERS
            for group in (0, 1):
                if layer > 0:  # the feed-forward part of the layer before, once the host has attended
                    self.gpu = max(self.gpu, attended[group]) + 0.7 * (tokens[group] + prefill / LAYERS / 2)
                    finished[group] = self.gpu
                    if group == 1:
                        self.freed.append(self.gpu)
                if layer < LAYERS:
                    self.gpu = max(self.gpu, self.link, finished[group]) + 0.3 * (tokens[group] + prefill / LAYERS / 2)
                    self.host = max(self.host, self.gpu) + attend[group]
                    attended[group] = self.host


def cases(count=20, seed=5):
    """Mixtral-like runs over ranges of hosts, links, GPUs and lengths; requests enough for several fillings."""
    rng = np.random.default_rng(seed)

    def spread(low, high):
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    for _ in range(count):
        isl, osl = round(spread(60, 600)), round(spread(24, 96))
        streamed, kv = 8e9, 1.3e5
        held = spread(30, 400)
        yield Case(
            streamed=streamed,
            cache=kv * (isl + osl) * held,
            kv=kv,
            flops=spread(1e10, 5e10),
            prompt_flops=64e3 * isl**2,
            rate=spread(20e12, 300e12),
            link=spread(12e9, 120e9),
            host_bandwidth=spread(8e9, 300e9),
            isl=isl,
            osl=osl,
            requests=round(held * spread(0.6, 8)),
            longest=1.25 * osl,
        )


@pytest.fixture(scope="module")
def compared():
    rows = []
    for seed, case in enumerate(cases()):
        endless = replace(case, cache=1e30)
        rows.append(
            (
                simulate(case, seed),
                float(ideal(case).throughput),
                float(estimate(case).throughput),
                float(estimate(endless).throughput),
                str(ideal(case).named[()]),
            )
        )
    return rows


def test_no_schedule_passes_the_ideal(compared):
    for simulated, bound, *_ in compared:
        assert simulated <= bound


def test_the_second_stage_is_within_ten_percent_of_the_simulation(compared):
    errors = [abs(second / simulated - 1) for simulated, _, second, _, _ in compared]
    assert max(errors) < 0.10


def test_the_second_stage_is_closer_than_a_model_without_host_memory(compared):
    bound = [row for row in compared if row[4] == "host memory"]
    assert len(bound) >= 5
    for simulated, _, second, blind, _ in bound:
        assert abs(second / simulated - 1) < abs(blind / simulated - 1)
    mean = np.mean([[abs(second / s - 1), abs(blind / s - 1)] for s, _, second, blind, _ in compared], axis=0)
    assert mean[0] < mean[1] / 3


def test_cases_meet_several_limits(compared):
    assert len({row[4] for row in compared}) >= 3


def test_more_host_memory_flips_the_named_limit_once():
    memory = np.linspace(110e9, 4000e9, 400)
    case = case_of(
        read("mistralai/Mixtral-8x7B-v0.1"), node_of("a100_pcie_40gb"), isl=100, osl=64, requests=1e6,
        host_memory=memory,
    )  # fmt: skip
    for stage in (ideal(case), estimate(case)):
        named = stage.named
        assert named[0] == "host memory"
        assert (named[1:] != named[:-1]).sum() == 1
        assert np.all(np.diff(stage.throughput) >= -1e-9)


def test_the_ideal_is_the_papers_parallelism_memory_efficiency_times_memory():
    case = case_of(
        read("mistralai/Mixtral-8x7B-v0.1"), node_of("a100_pcie_40gb"), isl=300, osl=100, requests=1e6,
        host_memory=200e9,
    )  # fmt: skip
    efficiency = (300 + 100) / (300 * 100 + 100**2 / 2)
    tokens = float(case.cache) / float(case.kv)
    in_an_iteration = efficiency * tokens
    expected = in_an_iteration * 100 / (300 + 100) * case.link / float(case.streamed)
    assert ideal(case).limits[LIMITS.index("host memory")] == pytest.approx(expected)


def test_mixtral_weighs_what_its_checkpoint_does():
    assert weight_bytes(read("mistralai/Mixtral-8x7B-v0.1")) == pytest.approx(93.4e9, rel=0.01)


def test_a_dense_model_and_a_small_host_are_refused():
    with pytest.raises(UsageError, match="no experts"):
        case_of(read("Qwen/Qwen3-8B"), node_of("a100_pcie_40gb"), isl=100, osl=64, requests=100)
    with pytest.raises(UsageError, match="at least 98 GB"):
        case_of(
            read("mistralai/Mixtral-8x7B-v0.1"), node_of("a100_pcie_40gb"), isl=1, osl=1, requests=1, host_memory=64e9
        )


def test_a_cache_too_small_for_one_request_serves_none():
    case = next(iter(cases(1)))
    small = replace(case, cache=case.kv * (case.isl + case.osl) * 0.5)
    assert estimate(small).throughput == 0
