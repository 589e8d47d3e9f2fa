"""Train one small convolutional network for each cell of a small cell space and keep how well it does.

Usage: python tools/record_cells.py FILE.npz [EPOCHS] [CHANNELS]

The space is ``cells(("conv3", "conv1", "pool"), 3, edges=6)`` of ``nearpeak.search.strategies.graphs``: 965 cells, all
there are. A network is a 3x3 convolution with stride 2, the cell on 4x4 pixels (a node averages what feeds it;
convolutions are followed by ReLU; the pool is the largest of 3x3) and a linear layer. It learns scikit-learn's
handwritten digits, shifted by up to a pixel, by Adam, all networks with the same data in the same order from the same
draws of weights. FILE holds ``points`` (rows of the space, ``[n, 9]``) and ``losses`` (mean cross-entropy on held
digits, nats, ``[n]``).
"""

import sys
from time import process_time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F  # noqa: N812

from nearpeak.search.strategies.graphs import GraphSpace, cells

CHUNK = 193
BATCH = 20
OPERATIONS = ("conv3", "conv1", "pool")


def patches(x: torch.Tensor, side: int) -> torch.Tensor:
    """3x3 neighbourhoods of maps ``[n, b, side^2, c]``: ``[n, b, side^2, 9, c]``."""
    n, b, _, c = x.shape
    padded = F.pad(x.view(n, b, side, side, c), (0, 0, 1, 1, 1, 1))
    shifts = [padded[:, :, i : i + side, j : j + side] for i in range(3) for j in range(3)]
    return torch.stack(shifts, dim=4).view(n, b, side * side, 9, c)


def forward(weights: dict[str, torch.Tensor], labels: np.ndarray, edges: np.ndarray, x: torch.Tensor) -> torch.Tensor:
    """Logits ``[n, b, 10]`` of n networks for pictures ``[b, 8, 8]``."""
    n, b = len(labels), len(x)
    windows = F.unfold(x[:, None], 3, padding=1, stride=2).transpose(1, 2).reshape(1, b * 16, 9)
    stem = torch.relu(windows @ weights["stem"] + weights["stem_bias"]).view(n, b, 16, -1)
    maps = [stem]
    for node in range(1, 5):
        feeds = torch.from_numpy(edges[:, :, node].astype(np.float32))
        share = feeds / feeds.sum(1, keepdim=True).clamp(min=1)
        mixed = torch.stack([share[:, i].view(n, 1, 1, 1) * m for i, m in enumerate(maps)]).sum(0)
        if node == 4:
            maps.append(mixed)
            break
        out = torch.zeros_like(stem)
        for kind, operation in enumerate(OPERATIONS):
            own = torch.from_numpy(np.flatnonzero(labels[:, node] == kind))
            if len(own) == 0:
                continue
            given = mixed[own]
            if operation == "pool":
                made = patches(given, 4).amax(3)
            else:
                given = patches(given, 4).flatten(3) if operation == "conv3" else given
                matrix, bias = weights[f"{operation}{node}"][own], weights[f"bias{node}"][own]
                made = torch.relu(given.reshape(len(own), b * 16, -1) @ matrix + bias).view(len(own), b, 16, -1)
            out = out.index_copy(0, own, made)
        maps.append(out)
    return maps[-1].flatten(2) @ weights["head"] + weights["head_bias"]


def train(
    labels: np.ndarray, edges: np.ndarray, data: tuple[np.ndarray, ...], epochs: int, channels: int
) -> np.ndarray:
    """Losses of networks on held pictures, ``[n]``."""
    learnt, classes, held, held_classes = data
    generator, n = torch.Generator().manual_seed(0), len(labels)

    def draw(rows: int, columns: int) -> torch.Tensor:
        drawn: torch.Tensor = (torch.randn(1, rows, columns, generator=generator) * (2 / rows) ** 0.5).repeat(n, 1, 1)
        return drawn

    weights = {"stem": draw(9, channels), "head": draw(16 * channels, 10)}
    weights |= {f"conv3{i}": draw(9 * channels, channels) for i in (1, 2, 3)}
    weights |= {f"conv1{i}": draw(channels, channels) for i in (1, 2, 3)}
    weights |= {f"bias{i}": torch.zeros(n, 1, channels) for i in (1, 2, 3)}
    weights |= {"stem_bias": torch.zeros(n, 1, channels), "head_bias": torch.zeros(n, 1, 10)}
    for w in weights.values():
        w.requires_grad_(True)
    steps = epochs * (len(learnt) // BATCH)
    optimizer = torch.optim.Adam(weights.values(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for epoch in range(epochs):
        rng = np.random.default_rng(epoch)
        order = rng.permutation(len(learnt))
        padded = np.pad(learnt, ((0, 0), (1, 1), (1, 1)))
        row, column = rng.integers(0, 3, (2, len(learnt), 1, 1))
        moved = padded[np.arange(len(learnt))[:, None, None], row + np.arange(8)[:, None], column + np.arange(8)]
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            logits = forward(weights, labels, edges, torch.from_numpy(moved[batch]))
            target = torch.from_numpy(classes[batch]).repeat(n)
            loss = F.cross_entropy(logits.reshape(-1, 10), target, reduction="sum") / BATCH
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        logits = forward(weights, labels, edges, torch.from_numpy(held))
        target = torch.from_numpy(held_classes).repeat(n)
        found: np.ndarray = (
            F.cross_entropy(logits.reshape(-1, 10), target, reduction="none").view(n, -1).mean(1).numpy()
        )
        return found


def main(path: str, epochs: int = 24, channels: int = 4) -> None:
    """Record."""
    torch.set_num_threads(1)
    pictures, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(classes))
    pictures = (pictures / 8 - 1).reshape(-1, 8, 8).astype(np.float32)
    data = pictures[order[:320]], classes[order[:320]], pictures[order[320:1020]], classes[order[320:1020]]
    space = cells(OPERATIONS, 3, edges=6)
    assert space.grid is not None
    points = space.grid.points
    graphs = GraphSpace(space).graphs(points)
    kinds = np.asarray([OPERATIONS.index(name) if name in OPERATIONS else -1 for name in graphs.names] + [-1])
    labels = kinds[graphs.labels]
    losses = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), CHUNK):
        chunk = slice(start, start + CHUNK)
        losses[chunk] = train(labels[chunk], graphs.edges[chunk], data, epochs, channels)
        print(start, losses[chunk].min(), losses[chunk].max(), process_time(), flush=True)
    np.savez_compressed(path, points=points.astype(np.int8), losses=losses)


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) for a in sys.argv[2:]))
