"""Train small networks with 300 recipes on six problems and keep their losses: six tables to tune on.

Usage: python tools/record_tuning.py FILE.npz [RECIPES] [EPOCHS]

FILE holds ``recipes`` (rows of ``trainings.RECIPES``, ``[n, 6]``), ``names`` of the problems ``[6]``
and ``losses`` (mean cross-entropy on held examples after the last epoch, nats, ``[6, n]``; NaN: diverged). Problems are
points on the arms of spirals, scikit-learn's handwritten digits and its tumours.
"""

import sys
from time import process_time

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from nearpeak.search.trials.trainings import RECIPES, Data, curves, spirals


def halves(inputs: np.ndarray, classes: np.ndarray) -> Data:
    """At most 512 standardised examples, half of them held."""
    order = np.random.default_rng(0).permutation(len(classes))[:512]
    scaled = ((inputs - inputs.mean(0)) / (inputs.std(0) + 0.1))[order].astype(np.float32)
    return Data(scaled[:256], classes[order][:256], scaled[256:], classes[order][256:])


def main(path: str, count: int = 300, epochs: int = 20) -> None:
    """Record."""
    problems = {
        "spirals-2": spirals(768, 2, 0.2),
        "spirals-3": spirals(768, 3, 0.2),
        "spirals-3-noisy": spirals(768, 3, 0.4),
        "spirals-5": spirals(768, 5, 0.1),
        "digits": halves(*load_digits(return_X_y=True)),
        "tumours": halves(*load_breast_cancer(return_X_y=True)),
    }
    recipes = RECIPES.sample(count, np.random.default_rng(0))
    losses = np.empty((len(problems), count), dtype=np.float32)
    for i, (name, data) in enumerate(problems.items()):
        losses[i] = curves(recipes, data, epochs)[:, -1]
        print(name, np.nanmin(losses[i]), np.nanmedian(losses[i]), process_time(), flush=True)
    np.savez_compressed(path, recipes=recipes.astype(np.int8), names=np.asarray(list(problems)), losses=losses)


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) for a in sys.argv[2:]))
