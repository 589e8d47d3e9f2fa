"""Measure prefill and decode of a transformers causal language model, eager, with its own KV cache.

One run is one generation: a prefill of ``batch`` prompts of ``isl`` random tokens and the first token of each (TTFT),
then ``osl - 1`` decode steps of one token each. TPOT is their mean, one value for each generation, as serving
benchmarks define it: (end to end - TTFT) / (osl - 1). A step ends when the host has the token, as an engine needs it.

The tokens fed are random rather than the model's own: a greedy chain soon repeats itself, and in a mixture of experts
repeated tokens meet the same experts again and again.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

from nearpeak.errors import NearpeakError
from nearpeak.measure.checkpoint import Run, load, skeleton
from nearpeak.measure.fingerprint import Fingerprint, fingerprint
from nearpeak.measure.measurement import Figure, Measurement, timed
from nearpeak.measure.memory import Memory
from nearpeak.measure.runtime import (
    forget_peak,
    memory_errors,
    memory_now,
    memory_peak,
    pinned_threads,
    synchronizer,
    torch,
)
from nearpeak.measure.timing import Effort, Sample, collect

GENERATION = Effort(warmup=1, repeats=7, most=100, width=0.05, budget=60.0)
"""How hard a model is measured unless said otherwise."""


@dataclass(frozen=True)
class Measured:
    """What a run showed.

    Attributes:
        run: what was run.
        ttft: seconds of each prefill, first token included.
        tpot: mean seconds of a decode step, one of each generation; None where ``osl`` is 1.
        memory: on the run's device. weights: bytes of parameters and buffers.
        attention: implementation that transformers chose. all_logits: whether prefill computed the logits of every
            position, since the model cannot be asked for the last alone: a cost that engines do not have.
        fingerprint: the platform.
    """

    run: Run
    ttft: Sample
    tpot: Sample | None
    memory: Memory
    weights: int
    attention: str
    all_logits: bool
    fingerprint: Fingerprint

    @property
    def measurement(self) -> Measurement:
        """As a Measurement, to be compared and stored. Figures ``ttft``, ``tpot`` in seconds, ``memory`` in bytes.

        ``memory`` is what the run took: the peak, less what the process held before the model was loaded.
        """
        samples = {"ttft": self.ttft} | ({"tpot": self.tpot} if self.tpot else {})
        figures = {name: timed(sample) for name, sample in samples.items()}
        if self.memory.peak is not None and self.memory.before is not None:
            taken = float(self.memory.peak - self.memory.before)
            figures["memory"] = Figure(taken, taken, taken, 0.0)
        what = {**self.run.what, "weights": self.weights, "attention": self.attention, "all_logits": self.all_logits}
        return Measurement(what=what, figures=figures, fingerprint=self.fingerprint, samples=samples)


def prefill_and_decode(run: Run, effort: Effort = GENERATION) -> Measured:
    """Load the model of a run and measure it.

    Raises:
        UsageError: more threads than cores.
        NearpeakError: torch or transformers is missing, the folder does not load, the model keeps no KV cache, or
            memory runs out.
    """
    with pinned_threads(run.threads), torch().inference_mode():
        skeleton(run)  # imports the model's code before memory is read, lest its size be taken for the model's
        before = memory_now(run.device)
        model = load(run)
        loaded = memory_now(run.device)
        forget_peak(run.device)
        generation = _Generation(model, run)
        with memory_errors(f"try a smaller batch (now {run.batch}) or shorter isl and osl ({run.isl} and {run.osl})"):
            samples = collect(generation.seconds, effort)
    tensors = [*model.parameters(), *model.buffers()]
    return Measured(
        run=run,
        ttft=samples[0],
        tpot=samples[1] if run.osl > 1 else None,
        memory=Memory(before, loaded, memory_peak(run.device)),
        weights=sum(t.numel() * t.element_size() for t in tensors),
        attention=str(model.config._attn_implementation),
        all_logits=not generation.last_only,
        fingerprint=fingerprint(run.threads),
    )


class _Generation:
    """Generations of one model, each from fresh prompts."""

    def __init__(self, model: Any, run: Run) -> None:  # noqa: ANN401 - a transformers model
        from inspect import signature

        self.model = model
        self.run = run
        self.vocab = model.config.get_text_config().vocab_size
        self.random = torch().Generator().manual_seed(run.seed)
        self.last_only = "logits_to_keep" in signature(model.forward).parameters
        self.wait = synchronizer(run.device) or (lambda: None)

    def seconds(self) -> tuple[float, ...]:
        """TTFT of one generation, and its TPOT where more than one token is asked for."""
        run = self.run
        tokens = torch().randint(self.vocab, (run.batch, run.isl + run.osl - 1), generator=self.random).to(run.device)
        self.wait()
        start = perf_counter()
        cache = self._step(tokens[:, : run.isl], None)
        first = perf_counter()
        for t in range(run.isl, run.isl + run.osl - 1):
            cache = self._step(tokens[:, t : t + 1], cache)
        last = perf_counter()
        return (first - start, (last - first) / (run.osl - 1)) if run.osl > 1 else (first - start,)

    def _step(self, tokens: Any, cache: Any) -> Any:  # noqa: ANN401 - [batch, tokens] ids; transformers' Cache
        """Feed tokens, wait until the host has the next of each sequence, return the cache."""
        last_only = {"logits_to_keep": 1} if self.last_only else {}
        out = self.model(input_ids=tokens, past_key_values=cache, use_cache=True, **last_only)
        out.logits[:, -1].argmax(-1).cpu()
        if getattr(out, "past_key_values", None) is None:
            raise NearpeakError(f"{self.run.folder}: a {self.run.family} keeps no KV cache that transformers hands out "
                                "(past_key_values), so its decode cannot be measured here")  # fmt: skip
        return out.past_key_values
