"""Train small networks and keep what each reached and how long it took.

Usage: python tools/record_time_and_quality.py FILE.npz [NETWORKS]

FILE holds ``points`` (rows of ``exchange_rate.NETWORKS`` in ``search.strategies``, ``[n, 7]``), ``errors`` (share of
held examples that each gets wrong, ``[n]``) and ``seconds`` of processor time of its training, ``[n]``.
"""

import sys

import numpy as np

from nearpeak.search.strategies.exchange_rate import NETWORKS, example, train


def main(path: str, count: int) -> None:
    """Record."""
    points, data = NETWORKS.sample(count, np.random.default_rng(0)), example()
    found = []
    for i, point in enumerate(points):
        found.append(train(point, data))
        if i % 20 == 0:
            print(i, *found[-1], flush=True)
    errors, seconds = np.transpose(found)
    np.savez_compressed(
        path, points=points.astype(np.int8), errors=errors.astype(np.float32), seconds=seconds.astype(np.float32)
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 400)
