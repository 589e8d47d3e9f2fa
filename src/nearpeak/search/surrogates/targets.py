"""What a surrogate of values to be made small should learn: their logarithm, the bad ones alike, failures as bad.

Times span decades, and how slow a slow configuration is does not matter: values above a quantile are pulled down to
it, so that the model spends its smoothness on the good ones. A failed evaluation counts as one of the worst: it teaches
to stay away, and no more.
"""

import numpy as np

from nearpeak.search.history import History
from nearpeak.search.parameters import Floats


def learnable(history: History, keep: float) -> Floats:
    """Targets of all evaluations, ``[n]``, none of them NaN; at least one must have succeeded.

    Args:
        keep: the share of the best values that keep their differences.
    """
    good = history.succeeded
    known = history.values[good]
    values = np.where(good, history.values, known.max())
    scaled = np.log(values) if known.min() > 0 else values
    return np.asarray(np.minimum(scaled, np.quantile(scaled, keep)))
