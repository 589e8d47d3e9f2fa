"""Three small applications in torch: a chat, an image generator and live captions, one unit of work at a time.

Each does the work of its kind with random weights: a causal language model with a cache; a convolutional denoiser with
classifier-free guidance (Ho and Salimans 2022), whose two halves may run side by side; an encoder and a decoder that
attends to it, a token at a time. What a request makes depends on the request alone, not on who ran beside it.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


class StandIn(Protocol):
    """An application that a device runs unit by unit."""

    def run(self, request: int, step: int, part: int) -> None:
        """One unit: of a request's first step (0) or a later one; ``part`` of those that may run side by side."""

    def made(self, request: int) -> tuple[int, ...]:
        """What the request has made: tokens, or pixels in whole thousandths."""


class Block(nn.Module):
    """Self-attention with a cache, attention to an encoder's states where there are any, and a dense block."""

    def __init__(self, hidden: int, heads: int, crossed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(3))
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.ask = nn.Linear(hidden, hidden) if crossed else None
        self.over = nn.Linear(hidden, hidden) if crossed else None
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.heads, -1).transpose(0, 1)

    def forward(self, x: Tensor, cache: list[Tensor], seen: Tensor | None = None, causal: bool = True) -> Tensor:
        """New tokens ``[tokens, hidden]`` after those of the cache (keys, values ``[heads, tokens, head_dim]``)."""
        q, k, v = (self._split(part) for part in self.qkv(self.norms[0](x)).chunk(3, -1))
        if cache:
            k, v = torch.cat((cache[0], k), 1), torch.cat((cache[1], v), 1)
        cache[:] = k, v
        mixed = scaled_dot_product_attention(q, k, v, is_causal=causal and len(x) > 1)
        x = x + self.out(mixed.transpose(0, 1).flatten(1))
        if self.ask is not None and self.over is not None and seen is not None:
            there = self._split(seen)
            mixed = scaled_dot_product_attention(self._split(self.ask(self.norms[1](x))), there, there)
            x = x + self.over(mixed.transpose(0, 1).flatten(1))
        dense: Tensor = self.down(silu(self.up(self.norms[2](x))))
        return x + dense


def _noise(device: str, seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


class Chat:
    """A causal language model: its first step is a prompt, each later one a token of the answer."""

    def __init__(self, device: str = "cpu", hidden: int = 512, layers: int = 4, prompt: int = 24) -> None:
        torch.manual_seed(0)
        self.device, self.prompt, self.vocab = device, prompt, 2000
        self.embedding, self.head = (nn.Embedding(self.vocab, hidden).to(device) for _ in range(2))
        self.blocks = nn.ModuleList(Block(hidden, hidden // 64) for _ in range(layers)).to(device)
        self.caches: dict[int, list[list[Tensor]]] = {}
        self.tokens: dict[int, list[int]] = {}

    def run(self, request: int, step: int, part: int) -> None:
        """See ``StandIn``."""
        if step == 0:
            draw = torch.Generator().manual_seed(request)
            ids = torch.randint(self.vocab, (self.prompt,), generator=draw).to(self.device)
            self.caches[request], self.tokens[request] = [[] for _ in self.blocks], []
        else:
            ids = torch.tensor(self.tokens[request][-1:], device=self.device)
        x = self.embedding(ids)
        for block, cache in zip(self.blocks, self.caches[request], strict=True):
            x = block(x, cache)
        self.tokens[request].append(int((x[-1] @ self.head.weight.T).argmax()))

    def made(self, request: int) -> tuple[int, ...]:
        """See ``StandIn``."""
        return tuple(self.tokens[request])


class Images:
    """A denoiser: each step predicts the noise with its caption and without, side by side."""

    def __init__(self, device: str = "cpu", channels: int = 96, size: int = 32, layers: int = 6) -> None:
        torch.manual_seed(1)
        self.device, self.shape = device, (1, 4, size, size)
        self.into, self.onto = nn.Conv2d(4, channels, 3, padding=1), nn.Conv2d(channels, 4, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers))
        self.caption = nn.Embedding(2, channels)
        for part in (self.into, self.onto, self.body, self.caption):
            part.to(device)
        self.predicted: dict[int, dict[tuple[int, int], Tensor]] = {}
        self.latents: dict[int, list[Tensor]] = {}

    def latent(self, request: int, step: int) -> Tensor:
        """The image after so many steps, from the predictions of the last one."""
        steps = self.latents.setdefault(request, [_noise(self.device, request, *self.shape)])
        if step == 0:
            return steps[0]
        with_it, without = (self.predicted[request][step, part] for part in (0, 1))
        return steps[step - 1] - 0.1 * (without + 3.0 * (with_it - without))

    def run(self, request: int, step: int, part: int) -> None:
        """See ``StandIn``. Both parts work out the image before the step for themselves, so that neither waits."""
        before = self.latent(request, step - 1)
        known = self.latents[request]
        if part == 0 and len(known) < step:
            known.append(before)
        x = self.into(before) + self.caption.weight[part][:, None, None]
        for layer in self.body:
            x = x + silu(layer(x))
        self.predicted.setdefault(request, {})[step, part] = self.onto(x)

    def made(self, request: int) -> tuple[int, ...]:
        """See ``StandIn``."""
        last = max(step for step, _ in self.predicted[request])
        return tuple((1000 * self.latent(request, last)).flatten()[:64].round().int().tolist())


class Captions:
    """An encoder of sound, whose first step hears a segment, and a decoder that writes a token a step."""

    def __init__(self, device: str = "cpu", hidden: int = 192, frames: int = 100) -> None:
        torch.manual_seed(2)
        self.device, self.frames, self.vocab = device, frames, 500
        self.ears = nn.Conv1d(40, hidden, 3, stride=2, padding=1).to(device)
        self.encoder = nn.ModuleList(Block(hidden, hidden // 64) for _ in range(2)).to(device)
        self.decoder = nn.ModuleList(Block(hidden, hidden // 64, True) for _ in range(2)).to(device)
        self.embedding, self.head = (nn.Embedding(self.vocab, hidden).to(device) for _ in range(2))
        self.heard: dict[int, Tensor] = {}
        self.caches: dict[int, list[list[Tensor]]] = {}
        self.tokens: dict[int, list[int]] = {}

    def run(self, request: int, step: int, part: int) -> None:
        """See ``StandIn``."""
        if step == 0:
            voice, hiss = _noise(self.device, request, 40, 1), _noise(self.device, request, 40, self.frames)
            x = self.ears(10 * voice + hiss).T
            for block in self.encoder:
                x = block(x, [], causal=False)
            self.heard[request], self.tokens[request] = x, [0]
            self.caches[request] = [[] for _ in self.decoder]
            return
        x = self.embedding(torch.tensor(self.tokens[request][-1:], device=self.device))
        for block, cache in zip(self.decoder, self.caches[request], strict=True):
            x = block(x, cache, self.heard[request])
        self.tokens[request].append(int((x[-1] @ self.head.weight.T).argmax()))

    def made(self, request: int) -> tuple[int, ...]:
        """See ``StandIn``."""
        return tuple(self.tokens[request])


def stand_ins(device: str = "cpu") -> dict[str, Any]:
    """The three by name."""
    return {"chat": Chat(device), "image": Images(device), "caption": Captions(device)}
