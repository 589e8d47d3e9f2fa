"""Policies of the live engine side by side: the same requests, model and cache, one run each, every answer checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nearpeak.decode.iterations import Clock, Engine, Served, serve
from nearpeak.decode.slots import Slots
from nearpeak.errors import NearpeakError, UsageError
from nearpeak.simulate.policies import Policy, policy
from nearpeak.workload.traffic import Requests

Counts = NDArray[np.int64]
HEAD = 64
"""Width of an attention head of a random model."""


def random_llama(hidden: int, layers: int, context: int, vocabulary: int = 1024, seed: int = 0) -> Any:  # noqa: ANN401
    """A Llama with random weights in float32, two query heads to a key. What it says depends on all that it read:
    matrices keep the size of what they multiply, so that attention weighs as much as the last token does.

    Raises:
        UsageError: ``hidden`` is no multiple of two heads.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if hidden < 2 * HEAD or hidden % (2 * HEAD) or layers < 1:
        raise UsageError(f"hidden {hidden} and layers {layers}: give a multiple of {2 * HEAD} and at least 1")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=11 * hidden // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD // 2,
        max_position_embeddings=context,
        initializer_range=hidden**-0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).train(False)


def load(folder: str) -> Any:  # noqa: ANN401 - a transformers model
    """The causal language model of a local folder, in the number format that it is stored in.

    Raises:
        UsageError: there is no such folder.
        NearpeakError: it does not load.
    """
    from transformers import AutoModelForCausalLM

    if not Path(folder).is_dir():
        raise UsageError(f"there is no folder {folder!r}; give a Hugging Face checkpoint on this machine")
    try:
        return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto").train(False)
    except (OSError, ValueError, RuntimeError) as error:
        raise NearpeakError(f"{folder!r} does not load as a causal language model: {error}") from error


def prompts(requests: Requests, vocabulary: int, seed: int) -> list[Counts]:
    """Random tokens of each request's prompt."""
    draw = np.random.default_rng(seed)
    return [draw.integers(vocabulary, size=n) for n in requests.isl.tolist()]


def alone(model: Any, prompt: Counts, answer: Counts) -> bool:  # noqa: ANN401 - a transformers model
    """Whether the model by itself, serving nothing else, would give this answer, outside ``forward.packed``.

    One pass over prompt and answer says it: if each token is the likeliest after those before it, greedy decoding
    makes the first, then from the same tokens the second, and so on.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(np.concatenate([prompt, answer[:-1]])).to(device)
    with torch.inference_mode():
        logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=len(answer)).logits[0]
    return bool((logits.argmax(-1).cpu().numpy() == answer).all())


def run(engines: Sequence[Engine], requests: Requests, prompts: Sequence[Counts], clock: Clock | None = None) -> Served:
    """Serve requests after a warm-up with the first few of them, which leaves nothing behind."""
    few = slice(0, 2 * len(engines))
    first = Requests(np.zeros(len(requests.isl[few])), requests.isl[few], np.minimum(requests.osl[few], 3))
    serve(engines, first, prompts[few])
    if clock is not None:
        clock.start = clock.read()
    return serve(engines, requests, prompts, clock)


def figures(served: Served, agree: bool | None) -> dict[str, Any]:
    """Of a run, as a row of a table. ``agree``: whether its answers are those of each request alone, if known."""
    gaps = served.tbt if served.tbt.size else np.zeros(1)
    return {
        "makespan_time": served.makespan,
        "answer_tokens_per_second": served.rate,
        "p50_ttft": float(np.median(served.ttft)),
        "p99_ttft": float(np.percentile(served.ttft, 99)),
        "p50_tbt_time": float(np.median(gaps)),
        "p99_tbt_time": float(np.percentile(gaps, 99)),
        "steps": len(served.steps),
        "row_moves": served.moves,
        "identical_tokens": None if agree is None else "yes" if agree else "no",
    }


def contenders(
    model: Any,  # noqa: ANN401 - a transformers model
    policies: Sequence[Policy],
    rows: int,
    length: int,
    concurrent: int = 0,
) -> dict[str, list[Engine]]:
    """Engines by name: one for each policy; where ``concurrent`` is 2 or more also so many instances of the model.

    Instances serve batch after batch, as the policy request-level does, and have equal parts of the cache's rows. They
    share the weights, which real ones do not, and a turn goes from one to the next at no cost: what they lose against
    one engine is only that fewer requests share a step.

    Raises:
        UsageError: fewer rows than instances.
    """
    if concurrent > rows:
        raise UsageError(f"{concurrent} instances share {rows} cache rows; give each at least one")
    found = {p.name: [Engine(model, p, Slots(rows, length))] for p in policies}
    if concurrent > 1:
        batches, part = policy("request-level"), rows // concurrent
        found[f"{concurrent} instances"] = [Engine(model, batches, Slots(part, length), i) for i in range(concurrent)]
    return found
