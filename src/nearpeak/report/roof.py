"""Where the parts of a plan's steps lie under the device's roofline (Williams et al., CACM 2009).

FLOPs and bytes follow from the model's matrices and caches; the seconds are the plan's own. A product counts two FLOPs
for each multiply-add, and the bytes of its weights (once), inputs and outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nearpeak.formats import ACTIVATION_BYTES, BYTES, FORMATS, code
from nearpeak.workload import (
    Experts,
    LinearAttention,
    attended_tokens,
    expert_linears,
    ffn_linears,
    head_width,
    kv_elements_per_device,
    mixer_linears,
    state_elements,
)

if TYPE_CHECKING:
    from nearpeak.plan import Explained
    from nearpeak.setup import Pool, Setup
    from nearpeak.workload import Linear, Mixer

PARTS = ("matrices", "attention", "experts")
BF16 = code("bf16")
POSITIONS = 256
"""Tokens of a prompt at which the length of the context that they see is sampled, for its mean."""


@dataclass(frozen=True)
class Operating:
    """Where one part of a step runs, on one device: its work, and the seconds that the plan gives it."""

    phase: str
    part: str
    flops: float
    bytes: float
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that moves."""
        return self.flops / self.bytes

    @property
    def achieved(self) -> float:
        """FLOP/s."""
        return self.flops / self.seconds


@dataclass(frozen=True)
class Roofline:
    """A device's roofs and what runs under them.

    Attributes:
        bandwidth: bytes/s of main memory. peaks: FLOP/s by rate key, of the formats that the plan multiplies in.
    """

    bandwidth: float
    peaks: Mapping[str, float]
    points: tuple[Operating, ...]


@dataclass
class _Work:
    """FLOPs and bytes on one device."""

    flops: float = 0.0
    bytes: float = 0.0

    def add(self, flops: float, moved: float, times: float = 1.0) -> None:
        self.flops += flops * times
        self.bytes += moved * times


@dataclass(frozen=True)
class _Pass:
    """Tokens that one device meets in a pass: of its attention replica, and of all replicas that share experts."""

    pool: Mapping[str, int]
    sequences: float
    rows: float
    context: float
    decoding: bool


def roofline(plan: "Explained") -> Roofline:
    """The roofline of a plan, with the matrices, attention and experts of its prefill and decode steps."""
    setup = plan.setup
    device = setup.node.device
    isl, osl = (float(setup.arrays()[n]) for n in ("isl", "osl"))
    pool = _sizes(setup.decode)
    # With pipeline stages the batch goes through them in as many micro-batches; a step is the way of one of them.
    sequences = max(1.0, pool["batch"] / pool["pp"])
    passes = {
        "decode": (_Pass(pool, sequences, sequences, isl + osl / 2, True), plan.decode),
        "prefill": (_Pass(_sizes(setup.prefill or setup.decode), 1.0, isl, isl, False), plan.prefill),
    }
    points = []
    for phase, (at, step) in passes.items():
        for part, work in _work(setup, at).items():
            if work.flops > 0 and step[part] > 0:
                points.append(Operating(phase, part, work.flops, work.bytes, step[part]))
    used = [setup.arrays()[name] for name in ("attention", "ffn", "experts")]
    rates = dict.fromkeys(["bf16", *(FORMATS[int(i)].rate for i in used)])
    return Roofline(device.memory_bandwidth, {r: device.rates[r] for r in rates if r in device.rates}, tuple(points))


def _sizes(pool: "Pool") -> dict[str, int]:
    return {name: int(a) for name, a in pool.arrays().items()}


def _work(setup: "Setup", at: _Pass) -> dict[str, _Work]:
    """Work of a pass on one device, by part; all layers."""
    model = setup.model
    held = {name: int(setup.arrays()[name]) for name in ("attention", "ffn", "experts", "kv")}
    found = {part: _Work() for part in PARTS}
    for block in model.blocks:
        if block.mixer is not None:
            for linear in mixer_linears(block.mixer, model.hidden):
                # A decoding latent attention absorbs this matrix into its kernel.
                if linear.name != "kv_b" or not at.decoding:
                    found["matrices"].add(*_product(linear, at.rows, at.pool["tp"], held["attention"]), block.count)
            found["attention"].add(*_mixer(block.mixer, at, held["kv"]), block.count)
        if block.ffn is not None:
            for linear in ffn_linears(block.ffn, model.hidden):
                stored = BF16 if linear.name == "router" else held["ffn"]
                found["matrices"].add(*_product(linear, at.rows, at.pool["tp"], stored), block.count)
        if isinstance(block.ffn, Experts):
            found["experts"].add(*_experts(block.ffn, model.hidden, at, held["experts"]), block.count)
    if not model.encoder:
        out = model.vocab / at.pool["tp"]
        moved = (out * model.hidden + at.sequences * (out + model.hidden)) * BYTES[BF16]
        found["matrices"].add(2 * at.sequences * out * model.hidden, float(moved))
    return found


def _product(linear: "Linear", rows: float, tp: int, stored: int) -> tuple[float, float]:
    out, inp = float(linear.out), float(linear.inp)
    if linear.shard == "column":
        out /= tp
    elif linear.shard == "row":
        inp /= tp
    weights = out * inp / linear.groups
    return 2 * rows * weights, float(weights * BYTES[stored] + rows * (inp * ACTIVATION_BYTES[stored] + 2 * out))


def _experts(ffn: Experts, hidden: int, at: _Pass, stored: int) -> tuple[float, float]:
    """Routed experts: each device reads those of its experts that at least one token is sent to (evenly routed)."""
    cut, spread = at.pool["moe_tp"], at.pool["moe_ep"]
    tokens = at.rows * at.pool["dp"]
    touched = ffn.count / spread * (1 - (1 - ffn.topk / ffn.count) ** tokens)
    sent = tokens * ffn.topk / spread
    flops = moved = 0.0
    for linear in expert_linears(ffn, hidden):
        weights = linear.out * linear.inp / cut
        out, inp = (linear.out / cut, linear.inp) if linear.shard == "column" else (linear.out, linear.inp / cut)
        flops += 2 * sent * weights
        moved += float(touched * weights * BYTES[stored] + sent * (inp * ACTIVATION_BYTES[stored] + 2 * out))
    return flops, moved


def _mixer(mixer: "Mixer", at: _Pass, stored: int) -> tuple[float, float]:
    """The mixer's own kernel: scores and weighted sums over what each token sees, or the update of a state."""
    tp = at.pool["tp"]
    if isinstance(mixer, LinearAttention):
        # Decay, rank-one update and read-out touch each element of the state: three multiply-adds.
        state = state_elements(mixer) / tp
        return 6 * at.rows * mixer.v_heads * mixer.k_dim * mixer.v_dim / tp, 2 * at.sequences * state * 2.0
    heads = max(1.0, mixer.heads / tp)
    width = head_width(mixer, at.decoding)
    if at.decoding:
        seen = float(attended_tokens(mixer, at.context))
        read = float(kv_elements_per_device(mixer, tp) * BYTES[stored])
    else:
        at_each = attended_tokens(mixer, np.linspace(1.0, at.context, POSITIONS))
        seen, read = float(at_each.mean()), 0.0
    queries = at.rows * heads * width * 2.0
    written = 0.0 if at.decoding else at.rows * float(kv_elements_per_device(mixer, tp) * BYTES[stored])
    return 2 * at.rows * seen * heads * width, at.sequences * seen * read + queries + written
