import weakref

import numpy as np
import pytest

from nearpeak.bounds.finetune import (
    CONTEXT,
    NF4_BYTES,
    PROJECTIONS,
    TOPIC,
    Job,
    calibrate,
    memory,
    speed,
)
from nearpeak.errors import UnknownName, UsageError
from nearpeak.hardware import device, node_of
from nearpeak.workload import from_config, read

QWEN = {
    "model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936, "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}  # fmt: skip
QWEN_1_5B = from_config(QWEN, "Qwen/Qwen2.5-1.5B")


def test_a_4060_trains_adapters_of_qwen_1_5b_at_2048_tokens_but_not_all_weights():
    capacity = device("rtx_4060").memory_capacity
    assert capacity == 8 * 2**30
    qlora = Job(QWEN_1_5B, seq=2048, nf4=True, paged=np.array([False, True]), checkpointing=True)
    lora = Job(QWEN_1_5B, seq=2048, checkpointing=True)
    assert np.all(memory(qlora).total <= capacity)
    assert memory(lora).total <= capacity
    for paged in (False, True):
        full = Job(QWEN_1_5B, seq=2048, method="full", checkpointing=True, paged=paged)
        assert memory(full).total > capacity
    short = Job(QWEN_1_5B, seq=64, method="full", checkpointing=True)
    assert memory(short).total > capacity  # not the sequence: the weights, gradients and states


def test_weights_are_what_the_model_has():
    lora, qlora = Job(QWEN_1_5B), Job(QWEN_1_5B, nf4=True)
    assert memory(lora).weights == pytest.approx(2 * 1.5437e9, rel=1e-3)
    linears = 28 * (1536 * (1536 + 512) + 1536**2 + 3 * 1536 * 8960)
    saved = memory(lora).weights - memory(qlora).weights
    assert saved == pytest.approx(linears * (2 - NF4_BYTES), rel=1e-3)
    per_layer = 2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960)
    assert Job(QWEN_1_5B, rank=8).trainable == 8 * 28 * per_layer


def test_each_choice_costs_and_saves_what_it_should():
    base = {"batch": 4, "seq": 1024, "rank": 64}
    plain, again = (Job(QWEN_1_5B, **base, checkpointing=c) for c in (False, True))
    assert memory(again).activations < memory(plain).activations / 5
    node = node_of("rtx_4060")
    assert 1.1 < speed(again, node).kernels / speed(plain, node).kernels < 1.5
    paged = Job(QWEN_1_5B, **base, paged=True)
    assert memory(plain).total - memory(paged).total == pytest.approx(float(paged.trainable) * 8)
    assert speed(paged, node).seconds > speed(plain, node).seconds
    full, few = Job(QWEN_1_5B, **base, method="full"), Job(QWEN_1_5B, **base, adapted=("q", "v"))
    assert speed(full, node).kernels > 1.2 * speed(few, node).kernels
    assert speed(plain, node).kernels > speed(few, node).kernels
    grown = memory(Job(QWEN_1_5B, batch=np.array([1, 2, 4, 8]), seq=1024))
    assert np.all(np.diff(grown.total) > 0)
    assert grown.context[0] == CONTEXT


def test_energy_lies_between_idle_and_full_power_and_a_faster_card_is_faster():
    jobs = Job(QWEN_1_5B, batch=np.array([1, 4, 16]), seq=512, checkpointing=True)
    slow, fast = (speed(jobs, node_of(name)) for name in ("rtx_4060", "rtx_4090"))
    assert np.all(fast.kernels < slow.kernels)
    node = node_of("rtx_4060")
    watts = slow.joules / slow.seconds
    assert np.all(watts <= 1.001 * (node.device.tdp + node.overhead_power / node.count))
    assert np.all(watts > node.overhead_power / node.count)
    assert np.all(np.diff(slow.tokens_per_second) >= 0)


def test_the_published_run_is_within_reach_of_the_prediction():
    """500 and 628 tokens/s were measured on the card; the bound of its kernels may not lie below."""
    run = speed(Job(QWEN_1_5B, batch=1, seq=512), node_of("rtx_4060"))
    assert 500 < run.tokens_per_second < 5 * 628


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UnknownName, match="query"):
        Job(QWEN_1_5B, adapted=("query",))
    with pytest.raises(UsageError, match="4-bit weights cannot be trained"):
        Job(QWEN_1_5B, method="full", nf4=True)
    with pytest.raises(UsageError, match="no decoder"):
        Job(read("mistralai/Mixtral-8x7B-v0.1"))
    with pytest.raises(UsageError, match="at least 3"):
        calibrate([Job(QWEN_1_5B)], node_of("rtx_4060"), [1.0])


def test_calibration_recovers_constants_and_never_goes_below_zero():
    node = node_of("rtx_4060")
    jobs = [Job(QWEN_1_5B, batch=b, seq=s) for b in (1, 2, 4) for s in (128, 512)]
    kernels = np.array([float(speed(j, node).kernels) for j in jobs])
    found = calibrate(jobs, node, 1.7 * kernels + 28 * 3 * 2e-3)
    assert found.slower == pytest.approx(1.7)
    assert found.layer == pytest.approx(2e-3)
    assert speed(jobs[0], node, found).seconds == pytest.approx(1.7 * kernels[0] + 28 * 3 * 2e-3)
    flat = calibrate(jobs, node, np.full(6, 0.5))
    assert flat.slower >= 0
    assert flat.layer >= 0


def test_the_topic_marks_what_overflows():
    found = TOPIC.explain(
        model="Qwen/Qwen3-1.7B", gpu="rtx_4060", batch=1.0, seq=2048.0, rank=16.0, batches=(1.0, 64.0)
    )
    fits = {row["way"]: row["fits"] for row in found.tables[0].rows}
    assert not fits["full, AdamW"]
    assert fits["QLoRA, paged AdamW, checkpointing"]
    assert [row["fits"] for row in found.tables[1].rows] == [True, False]


def sweep(count=24, seed=3):
    """Configurations of tiny models and jobs."""
    rng = np.random.default_rng(seed)
    targets = (PROJECTIONS, ("q", "v"), ("q", "k", "v", "o"))
    for _ in range(count):
        hidden = int(rng.choice([64, 128, 256]))
        config = QWEN | {
            "hidden_size": hidden,
            "num_hidden_layers": int(rng.choice([2, 4, 8])),
            "num_attention_heads": 4,
            "num_key_value_heads": int(rng.choice([1, 2, 4])),
            "intermediate_size": hidden * int(rng.choice([2, 3, 4])),
            "vocab_size": int(rng.choice([512, 2048, 8192])),
        }
        yield (
            config,
            {
                "batch": int(rng.choice([1, 2, 4])),
                "seq": int(rng.choice([64, 128, 256])),
                "rank": int(rng.choice([2, 8, 32])),
                "adapted": targets[rng.integers(3)],
                "checkpointing": bool(rng.integers(2)),
            },
        )


@pytest.fixture(scope="module")
def measured():
    """Jobs, peak bytes of tensors and seconds of a step, on one thread of this machine."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for config, job in sweep():
            model = with_adapters(torch, config, job)
            peak, seconds = step(torch, model, config["vocab_size"], job)
            rows.append((Job(from_config(config), **job, precision="fp32"), peak, seconds))
        return rows
    finally:
        torch.set_num_threads(threads)


def with_adapters(torch, config, job):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    class Adapted(torch.nn.Module):
        def __init__(self, base, rank):
            super().__init__()
            self.base = base
            self.down = torch.nn.Linear(base.in_features, rank, bias=False)
            self.up = torch.nn.Linear(rank, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    torch.manual_seed(0)
    plain = {k: v for k, v in config.items() if k != "model_type"}
    model = Qwen2ForCausalLM(Qwen2Config(**plain, use_cache=False, attn_implementation="sdpa"))
    model.requires_grad_(False)
    for layer in model.model.layers:
        for name in job["adapted"]:
            part = layer.self_attn if name in "qkvo" else layer.mlp
            setattr(part, f"{name}_proj", Adapted(getattr(part, f"{name}_proj"), job["rank"]))
    if job["checkpointing"]:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()


def step(torch, model, vocab, job):
    """Peak bytes of all living tensors in a step with the optimizer's states, and the quickest of five steps."""
    import time

    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Living(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.sizes, self.now, self.peak = {}, 0, 0

        def add(self, tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.drop, storage._cdata)

        def drop(self, key):
            self.now -= self.sizes.pop(key)

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self.add(leaf)
            return out

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    tokens = torch.randint(0, vocab, (job["batch"], job["seq"]))

    def once():
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    living = Living()
    with living:
        for tensor in (*model.parameters(), *model.buffers()):
            living.add(tensor.data)
        once()  # makes the states
        living.peak = living.now
        once()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return living.peak, min(times)


@pytest.mark.slow
def test_predicted_peaks_of_tensor_bytes_are_within_ten_percent(measured):
    ratios = [float(memory(job, context=0.0).total) / peak for job, peak, _ in measured]
    assert len(ratios) == 24
    assert np.abs(np.array(ratios) - 1).max() < 0.10


@pytest.mark.slow
def test_tokens_per_second_of_held_out_runs_are_in_order(measured):
    from scipy.stats import spearmanr

    from nearpeak.hardware.detect import cpu

    node = node_of(cpu())
    fitted, held = measured[:12], measured[12:]
    found = calibrate([job for job, *_ in fitted], node, [seconds for *_, seconds in fitted])
    predicted = [float(speed(job, node, found).tokens_per_second) for job, *_ in held]
    seen = [float(job.tokens) / seconds for job, _, seconds in held]
    assert spearmanr(predicted, seen).statistic >= 0.8
