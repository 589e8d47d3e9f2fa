"""Plans whose figures are set by hand, so that what shows or exports them is tested without the cost model."""

from dataclasses import replace

from nearpeak.formats import code
from nearpeak.hardware import Device, Link, MemoryLevel, Node, Price
from nearpeak.plan import Candidate, Explained, Figure, Lever, Plans, Point, Variant
from nearpeak.setup import Pool, Setup
from nearpeak.workload import Architecture, Attention, Block, Dense, Experts

GPU = Device(
    name="gpu",
    title="Test GPU 80 GB",
    vendor="NVIDIA",
    kind="gpu",
    architecture="test",
    year=2025,
    rates={"bf16": 1e15, "fp8": 2e15},
    memory=(MemoryLevel("HBM", 80e9, 2e12),),
    units=100,
    clock=1.5e9,
    tdp=700.0,
    sources={"default": "made up"},
    prices=(Price(2.0, "2025-01", "made up"),),
)
NODE = Node("server", "Test server", GPU, 8, Link("link", "Link", "nvlink", 4e11, 1e-6, "made up"))

HEADS = Attention(heads=32, kv_heads=8, head_dim=128, v_head_dim=128)
DENSE = Architecture("org/dense-8b", "llama", 4096, 128_000, (Block(HEADS, Dense(14336), 32),), 131_072)
MIXTURE = Architecture("org/mixture-30b", "qwen3_moe", 2048, 150_000, (Block(HEADS, Experts(128, 8, 768), 48),), 40_960)


def setup(model: Architecture = DENSE, decode: Pool | None = None, prefill: Pool | None = None, **fields) -> Setup:
    """A Setup for vLLM of 4000 prompt and 500 answer tokens; ``fields`` as in Setup, formats by name."""
    fields = {name: code(f) if isinstance(f, str) and name != "engine" else f for name, f in fields.items()}
    given = {"node": NODE, "engine": "vllm", "isl": 4000.0, "osl": 500.0} | fields
    return Setup(model=model, decode=decode or Pool(tp=2, batch=32), prefill=prefill, **given)


def explained(of: Setup | None = None, techniques: tuple[str, ...] = (), tpot: float = 0.010) -> Explained:
    """A plan with round figures: whole milliseconds, 10 % each way."""
    of = of or setup()

    def figure(value: float) -> Figure:
        return Figure(value, 0.9 * value, 1.1 * value, "measured")

    ledger = {"weights": 16e9, "kv": 40e9, "activations": 4e9, "reserved": 8e9, "capacity": 80e9}
    parts = ("matrices", "attention", "experts", "communication", "other", "engine")
    return Explained(
        setup=of,
        techniques=techniques,
        quality=0.98,
        figures={
            "ttft": figure(0.200),
            "tpot": figure(tpot),
            "latency": figure(0.2 + 499 * tpot),
            "request_rate": figure(6.0),
            "tokens_per_second": figure(3000.0),
            "tokens_per_second_per_device": figure(1500.0),
            "power": figure(1400.0),
            "joules_per_token": figure(0.5),
            "dollars_per_million_tokens": figure(0.37),
            "kg_co2e_per_million_tokens": figure(0.06),
        },
        memory={"decode": ledger} | ({} if of.prefill is None else {"prefill": ledger | {"kv": 1e9}}),
        decode=dict(zip(parts, (0.004, 0.003, 0.0, 0.001, 0.001, 0.001), strict=True)),
        prefill=dict(zip(parts, (0.120, 0.030, 0.0, 0.010, 0.010, 0.002), strict=True)),
        bottleneck="matrices",
        levers=(
            Lever("twice the memory bandwidth", 1.0, 0.61, 1.5),
            Lever("twice the arithmetic", 0.6, 0.97, 1.05),
        ),
    )


def plans(*chosen: Explained) -> Plans:
    """Plans as the planner would give them, best first; the front falls from fast to dense."""
    candidates = tuple(Candidate(i / 10, Variant(e.setup, (), e.quality), e.setup, ()) for i, e in enumerate(chosen, 1))
    front = tuple(Point(20.0 * 2**i, 4000.0 / 2**i, i >= 1, c) for i, c in enumerate(candidates))
    return Plans(candidates, front, priced=12_345, started=9_876, met=len(chosen), seconds=0.25, miss=None, left_out={})


def on(node: Node, device: Device | None = None, **fields) -> Node:
    """The node with other fields, and perhaps another device."""
    return replace(node, **fields, **({} if device is None else {"device": device}))
