"""Train 200 small networks on scikit-learn's handwritten digits and keep their learning curves.

Usage: python tools/record_trainings.py FILE.npz [RECIPES] [EPOCHS]

FILE holds ``recipes`` (rows of ``trainings.RECIPES``, ``[n, 6]``), ``losses`` (mean cross-entropy on
held digits after each epoch, ``[n, epochs]``; NaN: diverged) and ``seconds`` of processor time that one epoch of each
takes when it is trained alone, ``[n]``. Digits are shifted by up to a pixel, each example afresh in each epoch, so that
there is more to learn than 600 pictures.
"""

import sys
from time import process_time

import numpy as np
from sklearn.datasets import load_digits

from nearpeak.search.trials.trainings import RECIPES, Data, advance, begin, loss


def shifted(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures ``[m, 64]`` moved by -1, 0 or 1 pixels each way."""
    moved = np.pad(pictures.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    row, column = rng.integers(0, 3, (2, len(moved), 1, 1))
    which = np.arange(len(moved))[:, None, None]
    chosen = moved[which, row + np.arange(8)[:, None], column + np.arange(8)]
    return np.asarray(chosen.reshape(-1, 64), dtype=np.float32)


def main(path: str, count: int, epochs: int) -> None:
    """Record."""
    pictures, classes = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(classes))
    learnt, held = order[:640], order[640:1240]
    pictures = pictures / 8 - 1
    recipes = RECIPES.sample(count, rng)
    shown = shifted(pictures[held], rng)

    def data(epoch: int) -> Data:
        moved = shifted(pictures[learnt], np.random.default_rng([1, epoch]))
        return Data(moved, classes[learnt], shown, classes[held])

    networks = begin(recipes, data(0))
    losses = np.empty((count, epochs), dtype=np.float32)
    started = process_time()
    for epoch in range(epochs):
        networks = advance(networks, data(epoch))
        losses[:, epoch] = loss(networks, data(epoch))
        print(epoch, np.nanmin(losses[:, epoch]), process_time() - started, flush=True)
    seconds = np.empty(count)
    for i, recipe in enumerate(recipes):
        alone, taken = begin(recipe[None], data(0)), []
        for _ in range(3):
            started = process_time()
            loss(advance(alone, data(0)), data(0))
            taken.append(process_time() - started)
        seconds[i] = np.median(taken)
    np.savez_compressed(path, recipes=recipes.astype(np.int8), losses=losses, seconds=seconds.astype(np.float32))


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) for a in (*sys.argv[2:4], *("200", "54")[len(sys.argv) - 2 :])))
