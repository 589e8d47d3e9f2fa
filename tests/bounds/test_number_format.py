"""Which number format pays where follows from physics and calibration, and the crossover is where latencies tie."""

import time

import numpy as np
import pytest

from nearpeak.bounds.number_format import (
    SCHEMES,
    Scheme,
    changes,
    dequantization_time,
    lacking,
    linear_time,
    serve,
    stored_weights,
    unpacking_time,
    widened,
)
from nearpeak.cost import platform_of
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import device, here, node_of
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Architecture, Attention, Block, Dense, parameters, read

LLAMA_1B = Architecture(
    "meta-llama/Llama-3.2-1B", "llama", hidden=2048, vocab=128256, context=131072, tied=True, extra=2048,
    blocks=(Block(Attention(32, 8, 64, 64), Dense(8192), 16, norms=2 * 2048),),
)  # fmt: skip
LLAMA_8B = read("meta-llama/Meta-Llama-3.1-8B")
BATCH = np.arange(1.0, 513.0)
PUBLISHED = ("bf16", "w8a8-fp", "w8a8-int", "w4a16-int")


def on(gpu, model, engine="vllm", isl=512.0, osl=256.0):
    return Setup(model, node_of(gpu), engine, isl, osl, Pool())


def served(gpu, model, names=PUBLISHED, engine="vllm", batch=BATCH):
    setup = on(gpu, model, engine)
    return {n: serve(setup, SCHEMES[n], batch) for n in names if lacking(setup.node.device, SCHEMES[n]) is None}


@pytest.mark.parametrize("gpu", ["rtx_a6000", "a100_sxm", "h100_sxm"])
def test_4_bit_weights_are_cheapest_for_one_request_and_8_bit_products_for_many(gpu):
    found = served(gpu, LLAMA_8B)
    assert min(found, key=lambda n: found[n].token[0]) == "w4a16-int"
    assert min(found, key=lambda n: found[n].token.min()).startswith("w8a8")
    turn, *others = changes(list(found.values()))
    assert not others
    assert (turn.before, turn.after[:4]) == ("w4a16-int", "w8a8")
    below, above = (serve(on(gpu, LLAMA_8B), SCHEMES[n], turn.batch) for n in (turn.before, turn.after))
    assert float(below.latency) == pytest.approx(float(above.latency), rel=0.02)
    assert turn.request_rate == pytest.approx(turn.batch / float(below.latency), rel=0.03)
    assert 0 < turn.request_rate < found[turn.before].rate.max() * 1.01


def test_the_crossover_moves_up_with_arithmetic_over_bandwidth():
    a100, h100 = (changes(list(served(gpu, LLAMA_8B).values()))[0] for gpu in ("a100_sxm", "h100_sxm"))
    assert h100.batch > 3 * a100.batch


def test_gptq_is_slower_than_fp16_on_a_t4_but_faster_on_a_card_with_the_kernels():
    old = served("t4", LLAMA_1B, ("bf16", "w4a16-int", "gguf-q4"), "transformers")
    new = served("a10", LLAMA_1B, ("bf16", "w4a16-int", "gguf-q4"), "transformers")
    assert widened(device("t4"), SCHEMES["w4a16-int"]) == "bf16"
    # Published: 82 % slower.
    assert 1.3 < old["w4a16-int"].latency[0] / old["bf16"].latency[0] < 2.3
    assert old["gguf-q4"].latency[0] < old["bf16"].latency[0]
    assert new["w4a16-int"].latency[0] < new["bf16"].latency[0]
    assert (old["w4a16-int"].latency > old["bf16"].latency).all()


@pytest.mark.parametrize(("cpu", "least"), [("epyc_7742", 4), ("xeon_8358", 4), ("xeon_8480", 1.5)])
def test_gguf_is_faster_than_fp16_on_a_cpu_most_of_all_without_16_bit_products(cpu, least):
    found = served(cpu, LLAMA_1B, ("bf16", "gguf-q4"), "transformers")
    assert least < found["bf16"].latency[0] / found["gguf-q4"].latency[0] < 18


def test_a_widening_pass_moves_more_than_wide_weights_would():
    t4, scheme = device("t4"), SCHEMES["w4a16-int"]
    n = k = 4096.0
    one = float(linear_time(t4, 1, n, k, scheme) / linear_time(t4, 1, n, k, SCHEMES["bf16"]))
    # 4.125 bits packed and 16 written, then 16 read: against 16 read.
    assert one == pytest.approx((4.125 + 16 + 16) / 16, rel=0.01)
    ratio = linear_time(t4, 2.0 ** np.arange(12), n, k, scheme) / linear_time(
        t4, 2.0 ** np.arange(12), n, k, SCHEMES["bf16"]
    )
    assert (np.diff(ratio) <= 1e-9).all()
    assert 1 < ratio[-1] < 1.2
    fused = linear_time(device("a100_sxm"), 1, n, k, scheme) / linear_time(device("a100_sxm"), 1, n, k, SCHEMES["bf16"])
    assert float(fused) == pytest.approx(4.125 / 16, rel=0.02)


def test_a_step_widens_every_weight_of_the_layers_once():
    at, scheme = platform_of(on("t4", LLAMA_1B)), SCHEMES["w4a16-int"]
    weights = stored_weights(LLAMA_1B)
    assert weights == parameters(LLAMA_1B).attention + parameters(LLAMA_1B).ffn
    took = dequantization_time(at, LLAMA_1B, scheme)
    moved = weights * (4.125 + 16) / 8
    assert moved / 320e9 < took < 1.5 * moved / 320e9
    assert dequantization_time(platform_of(on("a100_sxm", LLAMA_1B)), LLAMA_1B, scheme) == 0


def test_unpacking_in_registers_hides_behind_memory_until_bandwidth_outruns_the_vector_units():
    gguf = SCHEMES["gguf-q4"]
    slow, quick = device("epyc_7742"), device("a100_sxm")
    weights = 1e9
    arriving = {d.name: weights * 4.5 / 8 / (0.8 * d.memory_bandwidth) for d in (slow, quick)}
    assert float(unpacking_time(slow, gguf, weights)) < arriving["epyc_7742"]
    assert float(unpacking_time(quick, gguf, weights)) > arriving["a100_sxm"]
    assert dequantization_time(platform_of(on("epyc_7742", LLAMA_1B)), LLAMA_1B, gguf) == 0


def test_packed_int4_against_fp32_on_this_cpu_changes_as_predicted():
    torch = pytest.importorskip("torch")
    n, k, group = 2048, 2048, 128
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(n, k, generator=rng)
    packed = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=rng)
    scales = torch.rand(n, k // group, 1, generator=rng)

    def unpacked(x):
        both = torch.stack([packed & 15, packed >> 4], -1).view(n, k // group, group)
        return x @ ((both.float() - 8) * scales).view(n, k).T

    cpu = here()[-1]
    stored = Scheme("int4", "int4_wo", "tensor cores")
    assert widened(cpu, stored) in {"fp32", "bf16"} or "bf16" in cpu.rates
    stored = stored if "bf16" not in cpu.rates else None
    if stored is None:
        pytest.skip("this CPU multiplies bf16, so that its engine would not widen to fp32")
    plain = Scheme("fp32", "fp32", "never")
    for rows in (1, 16, 64):
        predicted = float(linear_time(cpu, rows, n, k, stored) / linear_time(cpu, rows, n, k, plain))
        x = torch.randn(rows, k, generator=rng)
        best = {"plain": np.inf, "unpacked": np.inf}
        for _ in range(7):
            for name, product in (("plain", lambda x: x @ wide.T), ("unpacked", unpacked)):
                began = time.perf_counter()
                product(x)
                best[name] = min(best[name], time.perf_counter() - began)
        assert np.sign(np.log(predicted)) == np.sign(np.log(best["unpacked"] / best["plain"]))


def test_what_memory_does_not_hold_waits():
    setup = on("t4", LLAMA_8B)
    assert serve(setup, SCHEMES["bf16"], BATCH).largest == 0
    assert np.isinf(serve(setup, SCHEMES["bf16"], BATCH).latency).all()
    fits = serve(setup, SCHEMES["w4a16-int"], [1, 50, 5000])
    assert 50 < fits.largest < 5000
    assert fits.rate[2] == pytest.approx(serve(setup, SCHEMES["w4a16-int"], fits.largest).rate, rel=1e-6)


def test_the_explanation_names_winners_crossover_and_what_was_left_out(run_topic):
    told = run_topic("number-format", model="meta-llama/Meta-Llama-3.1-8B", gpu="rtx_a6000")
    assert told.figures == {"synchronous": "w4a16-int", "saturated": "w8a8-int"}
    assert any("requests/s on" in sentence for sentence in told.says)
    assert any("does not multiply fp8" in sentence for sentence in told.says)
    floor = run_topic("number-format", model="meta-llama/Meta-Llama-3.1-8B", gpu="h100_sxm", accuracy=0.985)
    assert {row["format"] for row in floor.tables[0].rows} == {"bf16", "w8a8-fp"}


def test_nonsense_is_refused_by_name(run_topic):
    with pytest.raises(UsageError, match="does not multiply fp8"):
        serve(on("a100_sxm", LLAMA_8B), SCHEMES["w8a8-fp"], 1)
    with pytest.raises(UnknownName, match="w4a4"):
        run_topic("number-format", model="Qwen/Qwen3-8B", gpu="h100_sxm", formats=("w4a4",))
    with pytest.raises(UsageError, match="none of bf16"):
        run_topic("number-format", model="Qwen/Qwen3-235B-A22B", gpu="t4", formats=("bf16",))
