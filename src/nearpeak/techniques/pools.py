"""Who does what: how prefill and decode share devices, or do not."""

from dataclasses import replace

import numpy as np

from nearpeak.setup import Pool, Setup
from nearpeak.techniques.technique import Technique, register


def _needs(setup: Setup) -> str | None:
    if setup.model.encoder:
        return "an encoder does not decode"
    if setup.prefill is not None:
        return "prefill and decode already have pools of their own"
    if np.all(np.asarray(setup.osl) <= 1):
        return "answers of one token are all prefill"
    return None


def _split(setup: Setup) -> Setup:
    layout = {name: getattr(setup.decode, name) for name in ("tp", "pp", "dp", "moe_tp", "moe_ep")}
    return replace(setup, prefill=Pool(**layout))


register(
    Technique(
        "disaggregation",
        "prefill and decode on devices of their own",
        "pools",
        "Zhong et al., DistServe, OSDI 2024 (arXiv 2401.09670); Patel et al., Splitwise, ISCA 2024 (arXiv 2311.18677)",
        _needs,
        _split,
    )
)
