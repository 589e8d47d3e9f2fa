"""Measured seconds of convolutions, layer by layer: what ``bounds.utilization`` predicts."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearpeak.bounds.utilization import Layers
from nearpeak.errors import UsageError
from nearpeak.measure.runtime import DTYPES, chosen_device, pinned_threads, synchronizer, torch
from nearpeak.measure.timing import Effort, measure

EFFORT = Effort(warmup=2, settle=0.05, repeats=5, most=50, width=0.05, budget=0.1)
"""How hard each layer is measured unless said otherwise."""


def layer_seconds(
    layers: Layers, device: str = "auto", dtype: str = "fp32", *, threads: int = 1, effort: Effort = EFFORT
) -> NDArray[np.float64]:
    """Seconds of all ``count`` places of each layer, ``[..., layers]``: the convolution, and a ReLU for each pass.

    Every layer is run alone on random data; its elementwise passes are run in place.

    Raises:
        UsageError: no such device or dtype, or more threads than cores.
        NearpeakError: torch is missing.
    """
    t: Any = torch()
    device = chosen_device(device)
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is none that is measured in; allowed: {', '.join(DTYPES)}")
    arrays = layers.arrays()
    count = arrays.pop("count")
    taken = np.zeros(count.shape)
    options = {"device": device, "dtype": getattr(t, DTYPES[dtype])}
    with pinned_threads(threads), t.inference_mode():
        for place in zip(*np.nonzero(count), strict=True):
            one = {name: int(values[place]) for name, values in arrays.items()}
            run = partial(_layer, t, one, *_operands(t, one, options))
            taken[place] = measure(run, effort, synchronizer(device)).median * count[place]
    return taken


def _operands(t: Any, one: dict[str, int], options: dict[str, Any]) -> tuple[Any, Any]:  # noqa: ANN401 - tensors
    height, width = one["height"] * one["stride"], one["width"] * one["stride"]
    image = t.randn(one["batch"], one["inp"], height, width, **options)
    return image, t.randn(one["out"], one["inp"] // one["groups"], one["kernel"], one["kernel"], **options)


def _layer(t: Any, one: dict[str, int], image: Any, weight: Any) -> None:  # noqa: ANN401 - torch and its tensors
    out = t.nn.functional.conv2d(
        image, weight, stride=one["stride"], padding=(one["kernel"] - 1) // 2, groups=one["groups"]
    )
    for _ in range(one["passes"]):
        out.relu_()
