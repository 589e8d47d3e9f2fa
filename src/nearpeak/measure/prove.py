"""Prove: predict, then measure, then put both side by side and keep them."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from nearpeak.measure.checkpoint import Run
from nearpeak.measure.generate import GENERATION, prefill_and_decode
from nearpeak.measure.measurement import Measurement, Prediction, record
from nearpeak.measure.store import Store
from nearpeak.measure.timing import Effort


def prove(
    run: Run,
    predict: Callable[[Run], Mapping[str, Prediction]],
    store: Store | None = None,
    effort: Effort = GENERATION,
) -> Measurement:
    """Measure a run (made by ``planned``) beside its prediction; ``compare`` makes rows of the result.

    Args:
        run: what is run.
        predict: figures predicted for a run (``ttft``, ``tpot``, seconds; ``memory``, bytes). It is asked before
            anything runs, so that it cannot know the outcome.
        store: where the measurement is kept; None keeps it nowhere.
        effort: how hard to measure.

    Raises:
        UsageError: a figure was predicted that is not measured.
        NearpeakError: as ``prefill_and_decode`` and ``Store.add``.
    """
    predictions = dict(predict(run))
    measurement = record(replace(prefill_and_decode(run, effort).measurement, predictions=predictions))
    if store:
        store.add(measurement)
    return measurement
