"""Train character-level language models on mixtures of three synthetic domains and keep what they reach.

Usage: python tools/record_mixtures.py FILE.npz [STEPS]

Domains: sums (``37+58=95;``), words of a made-up language, and nested records (``{ab:[3,1],c:{d:7}}``). A model sees
the last 6 characters: embedding of 8, two hidden layers, softmax; of about 10, 40 and 160 thousand weights. All models
of a size are trained at once as a batch of matrices, each on its own mixture, by Adam for 200 steps of 80 characters.
FILE holds ``mixtures`` (all weights that are multiples of 1/10, ``[66, 3]``), ``weights`` (of a model, ``[3]``),
``flops`` (of one training, ``[3]``) and ``losses`` (nats a character on held text of each domain, ``[66, 3 sizes, 3
domains]``).
"""

import sys
from time import process_time

import numpy as np
import torch

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789+=;{}[]:, "
CONTEXT, EMBEDDING, BATCH = 6, 8, 80
HIDDEN = (66, 162, 362)


def sums(rng: np.random.Generator, length: int) -> str:
    """Two-digit sums."""
    a, b = rng.integers(10, 100, (2, length // 8))
    return "".join(f"{x}+{y}={x + y};" for x, y in zip(a, b, strict=True))[:length]


def words(rng: np.random.Generator, length: int) -> str:
    """Words of a lexicon of 400, the common ones far more often."""
    fixed = np.random.default_rng(7)
    onsets, vowels = list("bdfgklmnprstvz"), list("aeiou")
    lexicon = [
        "".join(fixed.choice(onsets) + fixed.choice(vowels) for _ in range(fixed.integers(1, 4))) for _ in range(400)
    ]
    share = 1 / np.arange(2, 402)
    return " ".join(rng.choice(lexicon, length // 3, p=share / share.sum()))[:length]


def records(rng: np.random.Generator, length: int) -> str:
    """Records of names and numbers, nested up to three deep."""

    def value(depth: int) -> str:
        kind = rng.random()
        if depth < 3 and kind < 0.3:
            names = rng.choice(list("abcdefgh"), rng.integers(1, 4))
            return "{" + ",".join(f"{n}{n}:{value(depth + 1)}" for n in names) + "}"
        if depth < 3 and kind < 0.55:
            return "[" + ",".join(value(depth + 1) for _ in range(rng.integers(1, 4))) + "]"
        return str(rng.integers(0, 100))

    found = ""
    while len(found) < length:
        found += value(0) + ";"
    return found[:length]


def examples(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts ``[n, 6]`` and the characters that follow ``[n]``."""
    codes = torch.tensor([ALPHABET.index(c) for c in text])
    windows = codes.unfold(0, CONTEXT + 1, 1)
    return windows[:, :-1], windows[:, -1]


def train(
    mixtures: torch.Tensor,
    hidden: int,
    learnt: list[tuple[torch.Tensor, torch.Tensor]],
    held: list[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
) -> np.ndarray:
    """Losses ``[n, domains]`` after training a model on each mixture ``[n, domains]``."""
    n, v, generator = len(mixtures), len(ALPHABET), torch.Generator().manual_seed(0)
    shapes = ((v, EMBEDDING), (CONTEXT * EMBEDDING + 1, hidden), (hidden + 1, hidden), (hidden + 1, v))
    layers = [
        torch.randn(shape, generator=generator).mul((2 / shape[0]) ** 0.5 if i else 1.0).expand(n, *shape).clone()
        for i, shape in enumerate(shapes)
    ]
    for layer in layers:
        layer.requires_grad_()
    optimizer = torch.optim.Adam(layers, lr=0.15 / hidden**0.5, betas=(0.9, 0.98), foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / 20, 1 - s / steps))
    rows = torch.arange(n)[:, None]

    def loss(contexts: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        x = layers[0][rows[:, :, None], contexts].flatten(2)
        for w in layers[1:3]:
            x = torch.relu(torch.baddbmm(w[:, -1:], x, w[:, :-1]))
        logits = torch.baddbmm(layers[3][:, -1:], x, layers[3][:, :-1])
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), following.flatten(), reduction="none"
        ).view(n, -1).mean(1)  # fmt: skip

    ends = mixtures.cumsum(1)
    for _ in range(steps):
        # Common draws: models differ in their mixture, not in their luck.
        draw = (torch.arange(BATCH) + torch.rand(1, generator=generator)) / BATCH
        domain = (draw[None, :, None] >= ends[:, None, :-1]).sum(-1)
        place = (torch.rand(BATCH, generator=generator) * len(learnt[0][1])).long()
        contexts = torch.stack([c[place] for c, _ in learnt])[domain, torch.arange(BATCH)]
        following = torch.stack([f[place] for _, f in learnt])[domain, torch.arange(BATCH)]
        optimizer.zero_grad()
        loss(contexts, following).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return np.column_stack([loss(c.expand(n, -1, -1), f.expand(n, -1)).numpy() for c, f in held])


def main(path: str, steps: int) -> None:
    """Record."""
    torch.set_num_threads(1)
    lattice = np.array([(a, b, 10 - a - b) for a in range(11) for b in range(11 - a)]) / 10
    rngs = np.random.default_rng(1), np.random.default_rng(2)
    learnt = [examples(make(rngs[0], 20_000)) for make in (sums, words, records)]
    held = [examples(make(rngs[1], 800)) for make in (sums, words, records)]
    losses, weights = [], []
    for hidden in HIDDEN:
        started = process_time()
        losses.append(train(torch.tensor(lattice, dtype=torch.float32), hidden, learnt, held, steps))
        v = len(ALPHABET)
        weights.append(v * EMBEDDING + (CONTEXT * EMBEDDING + 1) * hidden + (hidden + 1) * (hidden + v))
        mean = losses[-1].mean(1)
        best = np.argsort(mean)[:4]
        print(
            weights[-1], process_time() - started, lattice[best].tolist(), mean[best], losses[-1][best[0]], flush=True
        )
    np.savez_compressed(
        path,
        mixtures=lattice,
        weights=np.array(weights),
        flops=6.0 * np.array(weights) * steps * BATCH,
        losses=np.stack(losses, 1).astype(np.float32),
    )


if __name__ == "__main__":
    main(sys.argv[1], int((sys.argv[2:] or ["200"])[0]))
