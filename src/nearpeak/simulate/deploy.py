"""From a Setup to what the simulator runs: instances, their memory in blocks, step times and engine."""

from dataclasses import replace

import numpy as np

from nearpeak.cost import ledger
from nearpeak.cost.engine import engine_on
from nearpeak.cost.memory import kv_bytes
from nearpeak.cost.serving import transfer
from nearpeak.errors import UsageError
from nearpeak.setup import Pool, Setup
from nearpeak.simulate.loop import Feed
from nearpeak.simulate.policies import Policy, policy
from nearpeak.simulate.serving import Deployment, Instances, Speculation, serve
from nearpeak.simulate.steps import stacked, step_table

BLOCK = 16
MOST = 256
"""Requests that an engine runs at once unless told otherwise: vLLM's default."""
TYPICAL = 1024
"""Tokens at which the bytes of a block are reckoned: what windows and states keep is spread over as many."""


def room_blocks(setup: Setup, pool: Pool, block: int = BLOCK) -> int:
    """Blocks of cache of one instance: what the weights, activations and the engine leave of each device.

    Raises:
        UsageError: they leave nothing.
    """
    empty = ledger(setup, replace(pool, batch=np.zeros(())))
    left = float(empty.capacity - empty.used)
    tokens = max(TYPICAL, float(np.asarray(setup.isl) + np.asarray(setup.osl)))
    each = float(kv_bytes(setup, pool, np.asarray(tokens))) / tokens
    blocks = int(left / (each * block)) * int(np.asarray(pool.dp))
    if blocks < 1:
        raise UsageError(
            f"{setup.model.name} does not fit: a device of {setup.node.device.title} with tp {pool.tp} pp {pool.pp} "
            f"needs {float(empty.used) / 1e9:.1f} GB of {float(empty.capacity) / 1e9:.1f} without any cache; use more "
            "devices or fewer bits"
        )
    return blocks


def own_policy(setup: Setup) -> Policy:
    """What the Setup's engine does: chunks beside decoding requests where it mixes the two, else prompts first."""
    mixes = engine_on(setup.engine, setup.node).mixes
    return policy("stall-free" if mixes else "prefill-first", budget=int(np.asarray(setup.chunk)))


def knee(deployment: Deployment, requests: Feed, seed: int = 0) -> float:
    """Requests/s that a deployment serves at most: these requests, all there from the start."""
    at_once = requests._replace(arrival=np.zeros_like(requests.arrival))
    return serve(deployment, at_once, seed=seed, keep=False).request_rate


def deploy(
    setup: Setup,
    *,
    rule: Policy | None = None,
    router: str = "least-loaded",
    most: int = MOST,
    longest: int | None = None,
    ahead: bool | None = None,
    block: int = BLOCK,
) -> Deployment:
    """What serves a Setup (a single configuration): its pools as instances, under its engine's ways.

    Args:
        rule: the policy; None: the engine's own. most: requests that an instance runs at once.
        longest: tokens of a request, at most; None: the model's context.
        ahead: steps are composed one ahead; None: as vLLM does by default.

    Raises:
        UsageError: the model does not fit, or pools have unlike numbers of pipeline stages.
    """
    host = engine_on(setup.engine, setup.node)
    context = int(longest or setup.model.context or 1 << 17)
    rule = rule or own_policy(setup)
    stages = {int(np.asarray(pool.pp)) for pool in setup.pools}
    if len(stages) > 1:
        raise UsageError(f"pools with {sorted(stages)} pipeline stages; give all pools the same number")
    tables, instances = [], []
    roles = ("both",) if setup.prefill is None else ("decode", "prefill")
    for kind, (pool, role) in enumerate(zip(setup.pools, roles, strict=True)):
        tables.append(step_table(setup, pool, most, context, host))
        blocks = room_blocks(setup, pool, block)
        devices, count = float(pool.instance_devices), int(np.asarray(pool.replicas))
        instances.append(Instances(kind, count, most, blocks, devices, role))
    fixed, each = 0.0, 0.0
    if setup.prefill is not None:
        fixed = float(transfer(setup, setup.prefill, np.zeros(())))
        each = (float(transfer(setup, setup.prefill, np.asarray(4096.0))) - fixed) / 4096
    speculation = Speculation(int(np.asarray(setup.draft)), float(np.asarray(setup.acceptance)))
    return Deployment(
        stacked(tables), tuple(instances), rule, router, block, context, stages.pop(),
        setup.engine.startswith("vllm") if ahead is None else ahead, host.reserves, True, speculation, host.request,
        fixed, each,
    )  # fmt: skip
