"""What test-time scaling costs: best of ``N`` answers, long chains of thought, sparse caches (Sadhukhan et al. 2025).

A question's prompt of ``p`` tokens is cached once; ``N`` trials of ``L`` tokens grow from it. With ``P`` parameters
that a token meets, ``K`` bytes of cache for a token, ``A`` FLOP of attention for each cached token, and a device that
does ``I`` FLOP while it moves a byte, dense attention costs

    2 P N L  +  A N L (p + L / 2)  +  I K L (p + N L / 2)

equivalent FLOP: parameters, attention, and reading the cache, whose prompt all trials share. The first term grows with
the model, the others with the square of the length: small models with long chains are dearer than their FLOP. Where a
query attends to no more than a budget of tokens, ``L / 2`` stops growing. (arXiv 2506.05333. Here each mixer's own
window counts too, and the scoring of blocks by which a budget is spent.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nearpeak.bounds import passes
from nearpeak.cost.attention import STATE_BYTES
from nearpeak.errors import UsageError
from nearpeak.topic import GPU, Explanation, Option, Table, Topic, names, numbers, require_positive
from nearpeak.workload import (
    Architecture,
    Attention,
    LinearAttention,
    Mixer,
    attended_tokens,
    head_width,
    kv_elements,
    read,
    state_elements,
)

Array = NDArray[np.float64]
STEPS = (np.arange(256) + 0.5) / 256
"""Where along an answer the tokens that are read are counted; what grows linearly is summed exactly."""


@dataclass(frozen=True)
class Cost:
    """Of one question with all its trials; arrays that broadcast.

    Attributes:
        prefill: FLOP of the prompt, once. parameters, attention: FLOP of all answers in matrices, and in attention.
        cache, weights: bytes that all answers read of caches, and of weights.
    """

    prefill: Array
    parameters: Array
    attention: Array
    cache: Array
    weights: Array

    @property
    def flop(self) -> Array:
        """FLOP in all."""
        return self.prefill + self.parameters + self.attention

    def equivalent(self, intensity: ArrayLike) -> Array:
        """FLOP, and those that the device could do while it reads. ``intensity``: its FLOP/s over its bytes/s."""
        return np.asarray(self.flop + np.asarray(intensity) * (self.cache + self.weights))

    def attention_share(self, intensity: ArrayLike) -> Array:
        """Share of ``equivalent`` that attention and its cache take."""
        return np.asarray((self.attention + np.asarray(intensity) * self.cache) / self.equivalent(intensity))


def cost(
    model: Architecture,
    prompt: ArrayLike,
    length: ArrayLike,
    trials: ArrayLike = 1,
    budget: ArrayLike = 0,
    block: ArrayLike = 16,
    element: ArrayLike = 2.0,
    weight: ArrayLike = 2.0,
    together: ArrayLike = 0,
) -> Cost:
    """Cost of one question.

    Args:
        prompt, length: tokens of the question and of each answer. trials: answers to it.
        budget: most tokens that a query attends to in a layer, by scores of blocks of ``block`` tokens; 0 for all.
        element, weight: bytes of a cached value and of a parameter.
        together: questions that decode at once and share each reading of the weights; 0 for so many that it costs
            nothing, as in the paper.

    Raises:
        UsageError: a number is negative, infinite, or 0 where that has no meaning.
    """
    require_positive(prompt=prompt, length=length, trials=trials, block=block, element=element, weight=weight)
    most, shared = np.asarray(budget, float), np.asarray(together, float)
    require_positive(budget=np.where(most == 0, 1.0, most), together=np.where(shared == 0, 1.0, shared))
    p, tokens, n = (np.asarray(x, float) for x in (prompt, length, trials))
    limit = np.where(most == 0, np.inf, most)
    made = tokens[..., None] * STEPS + 0.5
    wide = tuple(np.asarray(x, float)[..., None] for x in (p, n, limit, block))
    attention: Array = np.zeros(())
    entries: Array = np.zeros(())
    for layer in model.blocks:
        if layer.mixer is not None:
            flop, elements = _step(layer.mixer, made, *wide)
            attention = attention + layer.count * tokens * flop.mean(-1)
            entries = entries + layer.count * tokens * elements.mean(-1)
    states = 2.0 * sum(b.count * state_elements(b.mixer) for b in model.blocks if b.mixer) * STATE_BYTES
    met = passes.met_parameters(model, n * np.maximum(shared, 1.0)) * np.asarray(weight)
    return Cost(
        prefill=passes.prefill_matrix_flop(model, p) + passes.prefill_attention_flop(model, p),
        parameters=n * tokens * passes.matrix_flop(model),
        attention=attention,
        cache=entries * np.asarray(element) + n * tokens * states,
        weights=np.where(shared == 0, 0.0, tokens * met / np.maximum(shared, 1.0)),
    )


def _step(mixer: Mixer, made: Array, prompt: Array, trials: Array, budget: Array, block: Array) -> tuple[Array, Array]:
    """FLOP and cached elements read in a layer by one step of all trials, after ``made`` tokens of each."""
    if isinstance(mixer, LinearAttention):
        flop = trials * 6.0 * mixer.v_heads * mixer.k_dim * mixer.v_dim
        return np.broadcast_to(flop, np.broadcast_shapes(flop.shape, made.shape)), np.zeros(made.shape)
    seen = attended_tokens(mixer, prompt + made)
    taken = np.minimum(seen, budget)
    # What all trials see of the prompt they read once; what each has made is its own.
    union = np.maximum(seen - made, 0.0) + trials * np.minimum(made, seen)
    choosing = seen > budget
    chosen = np.minimum(trials * taken, prompt + trials * made) if mixer.indexer else union
    entries = np.where(choosing, np.minimum(trials * taken, union), chosen)
    blocks = np.where(choosing, union / block, 0.0)
    width, cached = head_width(mixer, decoding=True), kv_elements(mixer)
    keys = cached / 2 if isinstance(mixer, Attention) else cached
    scored = np.where(choosing, trials * seen / block, 0.0) * width / 2
    flop = 2.0 * mixer.heads * (trials * taken * width + scored)
    return flop, entries * cached + blocks * keys


def best_under(spent: ArrayLike, accuracy: ArrayLike, caps: ArrayLike) -> NDArray[np.intp]:
    """Of candidates ``[candidates]`` the most accurate that costs no more than each of ``caps`` ``[caps]``.

    Of equally accurate ones the cheapest. -1 where a cap buys none. Returns indices ``[caps]``.
    """
    price, score, cap = (np.asarray(x, float) for x in (spent, accuracy, caps))
    order = np.lexsort((price, -score))
    affordable = price[order] <= cap[..., None]
    return np.where(affordable.any(-1), order[affordable.argmax(-1)], -1)


def _explain(
    models: tuple[str, ...],
    gpu: str,
    prompt: float,
    length: tuple[float, ...],
    trials: tuple[float, ...],
    budget: tuple[float, ...],
    together: float,
    accuracy: str | None,
) -> Explanation:
    from nearpeak.cost import platform
    from nearpeak.formats import code
    from nearpeak.hardware import device as catalogued

    device = catalogued(gpu)
    rate = float(platform(device, None).rate(np.asarray(code("bf16"))))
    intensity = rate / device.memory_bandwidth
    if not models and accuracy is None:
        raise UsageError("give --models, or a table of --accuracy that names them")
    if accuracy is not None:
        return _search(accuracy, prompt, together, intensity, rate)
    tokens, answers, most = (x.ravel() for x in np.meshgrid(length, trials, budget, indexing="ij"))
    rows: list[Mapping[str, Any]] = []
    for name in models:
        found = cost(read(name), prompt, tokens, answers, most, together=together)
        rows += Table.of(
            "",
            model=name,
            length=tokens,
            trials=answers,
            budget=most,
            flop=found.flop,
            equivalent_flop=found.equivalent(intensity),
            attention_share=found.attention_share(intensity),
            device_time=found.equivalent(intensity) / rate,
        ).rows
    dearest = max(rows, key=lambda row: row["attention_share"])
    return Explanation(
        {"device_intensity": intensity},
        (Table("One question with all its trials (budget 0: attention reads everything)", tuple(rows)),),
        (
            f"At {dearest['length']:g} tokens attention and its cache are {100 * dearest['attention_share']:.0f} % of "
            f"the cost of {dearest['model']}: {dearest['equivalent_flop'] / dearest['flop']:.3g} times its FLOP.",
            "Give --accuracy a table of measured accuracies to find the best model, trials, length and budget.",
        ),
    )


COLUMNS = ("model", "trials", "length", "accuracy")


def _search(path: str, prompt: float, together: float, intensity: float, rate: float) -> Explanation:
    """The best of the rows of a table of accuracies at each cost, with memory counted and with FLOP alone."""
    from nearpeak.cost import read_table

    table = read_table(path)
    if missing := [name for name in COLUMNS if name not in table]:
        raise UsageError(f"{path!r} lacks {', '.join(missing)}; it needs {', '.join(COLUMNS)}, and may have budget")
    names = np.asarray(table["model"], dtype=str)
    require_positive(accuracy=table["accuracy"])
    budget = np.asarray(table.get("budget", np.zeros(names.size)), float)
    flop, equivalent = np.zeros(names.size), np.zeros(names.size)
    for name in np.unique(names):
        of = names == name
        found = cost(read(str(name)), prompt, table["length"][of], table["trials"][of], budget[of], together=together)
        flop[of], equivalent[of] = found.flop, found.equivalent(intensity)
    tables = []
    for title, spent in (("memory counted", equivalent), ("FLOP alone", flop)):
        caps = np.unique(spent)
        picked = best_under(spent, table["accuracy"], caps)
        front = picked[np.append(True, np.diff(picked) != 0)]
        tables.append(
            Table.of(
                f"Best accuracy for the cost, {title}",
                model=names[front],
                trials=table["trials"][front],
                length=table["length"][front],
                budget=budget[front],
                accuracy=table["accuracy"][front],
                flop=flop[front],
                equivalent_flop=equivalent[front],
                device_time=equivalent[front] / rate,
            )
        )
    return Explanation({"device_intensity": intensity, "candidates": int(names.size)}, tuple(tables))


TOPIC = Topic(
    "test-time",
    "What do long chains of thought and best-of-N cost, once memory is counted?",
    "Sadhukhan et al., Kinetics: Rethinking Test-Time Scaling Laws, 2025 (arXiv 2506.05333)",
    (
        Option("models", names, "Models' ids, folders or configs, between commas; or those of --accuracy.", ()),
        GPU,
        Option("prompt", float, "Tokens of a question.", 512.0),
        Option("length", numbers, "Tokens of an answer, several between commas.", (4096.0, 32768.0)),
        Option("trials", numbers, "Answers to a question, several between commas.", (1.0, 8.0)),
        Option("budget", numbers, "Most tokens that a query attends to; 0 for all.", (0.0, 1024.0)),
        Option("together", float, "Questions that share a reading of the weights; 0 for very many.", 0.0),
        Option("accuracy", str, "Table (.csv, .parquet) of model, trials, length, accuracy and, if any, budget.", None),
    ),
    _explain,
    "--models Qwen/Qwen3-0.6B,Qwen/Qwen3-8B,Qwen/Qwen3-32B --gpu b200 --length 4096,32768",
)  # fmt: skip
