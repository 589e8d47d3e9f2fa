"""Launch files for SGLang.

Flags as in the documentation of SGLang (docs.sglang.io: server arguments, DP and DP attention, PD disaggregation,
model gateway). With data-parallel attention SGLang counts ``--tp-size``, ``--max-running-requests`` and
``--chunked-prefill-size`` over all attention replicas and divides them itself.
"""

from typing import TYPE_CHECKING

from nearpeak.errors import NearpeakError
from nearpeak.export import script
from nearpeak.export.placement import Servers, place
from nearpeak.export.weights import Weights, weights_of

if TYPE_CHECKING:
    from nearpeak.plan import Explained

Flag = tuple[str, str | int | None]

PORTS = {"serve": 30000, "prefill": 30000, "decode": 32000}
STRIDE = 100
"""Between ports of servers on one node: with data-parallel attention a server takes some more ports after its own."""
BOOTSTRAP = 8998
INIT = 20000
"""Port over which the nodes of one server find each other."""
NAMED = ('--served-model-name "$NAME"', '--host "$HOST"', '--context-length "$MAX_MODEL_LEN"')
KV = {"bf16": "auto", "fp8": "fp8_e4m3"}


def sglang(plan: "Explained") -> dict[str, str]:
    """Launch files of a plan for SGLang: a script for each kind of server, and a router where there are several.

    Raises:
        NearpeakError: SGLang cannot express the plan.
    """
    pools = place(plan.setup)
    weights = weights_of(plan)
    routed = sum(p.replicas for p in pools) > 1
    files = {f"{p.role}.sh": _servers(plan, p, weights, routed) for p in pools}
    if routed:
        files["router.sh"] = _router(pools)
    return files


def _servers(plan: "Explained", servers: Servers, weights: Weights, routed: bool) -> str:
    notes = [*script.described(plan, servers, "sglang", "SGLang"), *weights.notes]
    if servers.role != "serve":
        notes.append("Both pools need NIXL (pip install nixl).")
    launch = 'python -m sglang.launch_server --model-path "$MODEL"'
    if servers.span > 1:
        mine = f'--nnodes {servers.span} --node-rank "$rank" --dist-init-addr "$HEAD:{INIT}"'
        bootstrap = f" --disaggregation-bootstrap-port {BOOTSTRAP}" if servers.role == "prefill" else ""
        command = f'{launch} --port "$PORT" "${{flags[@]}}" {mine}{bootstrap}'
        body = f"{script.spanning_header(servers)}\n{command}"
    else:
        command = f'{launch} --port $((PORT + {STRIDE} * i)) "${{flags[@]}}"'
        if servers.role == "prefill":
            command += f" --disaggregation-bootstrap-port $(({BOOTSTRAP} + i))"
        body = script.on_one_node(servers, plan.setup.node.device.vendor, command)
    return script.script(
        notes,
        script.constants(plan, weights, PORTS[servers.role], routed),
        script.flag_array(NAMED, _flags(plan, servers, weights)),
        body,
    )


def _flags(plan: "Explained", servers: Servers, weights: Weights) -> list[Flag]:
    from nearpeak.plan import record

    plain = record(plan)
    in_flight = max(servers.batch, servers.pp) if servers.role == "prefill" else servers.batch
    flags: list[Flag] = [("--tp-size", servers.tp * servers.dp), ("--pp-size", servers.pp)]
    if servers.dp > 1:
        if servers.moe_tp * servers.moe_ep == 1:
            raise NearpeakError(
                f"{plan.setup.model.name} has no experts that dp {servers.dp} attention replicas could share; "
                "use replicas"
            )
        flags += [("--dp-size", servers.dp), ("--enable-dp-attention", None)]
    if servers.moe_ep > 1:
        flags.append(("--ep-size", servers.moe_ep))
    cache = plain["formats"]["kv"]
    if cache not in KV:
        raise NearpeakError(f"SGLang stores the KV cache as {' or '.join(KV)}, not as {cache}")
    flags += [
        ("--max-running-requests", in_flight * servers.dp),
        ("--chunked-prefill-size", plain["chunk"] * servers.dp),
        ("--kv-cache-dtype", KV[cache]),
        ("--mem-fraction-static", _static_share(plan, servers)),
    ]
    if weights.quantization:
        flags.append(("--quantization", weights.quantization))
    if servers.role != "serve":
        flags += [("--disaggregation-mode", servers.role), ("--disaggregation-transfer-backend", "nixl")]
    if plan.setup.model.encoder:
        flags.append(("--is-embedding", None))
    return flags


def _static_share(plan: "Explained", servers: Servers) -> str:
    """The share of a device's memory that is left for weights and cache: activations are not in it."""
    ledger = plan.memory["prefill" if servers.role == "prefill" else "decode"]
    return f"{1 - (ledger['reserved'] + ledger['activations']) / ledger['capacity']:.3f}"


def _router(pools: tuple[Servers, ...]) -> str:
    lines = [
        "The router in front of the servers; start it when they answer. pip install sglang-router",
        "Each request goes to the less loaded of two servers drawn by chance, so that batches stay about equal.",
    ]
    arguments = ['--host "$HOST" --port "$PORT" --policy power_of_two']
    if len(pools) == 1:
        arguments += ["--worker-urls", *(url for url, _ in script.urls(pools[0], PORTS["serve"], STRIDE))]
    else:
        first, second = pools
        arguments.append("--pd-disaggregation")
        arguments += [f"--prefill {url} {BOOTSTRAP + i}" for url, i in script.urls(first, PORTS["prefill"], STRIDE)]
        arguments += [f"--decode {url}" for url, _ in script.urls(second, PORTS["decode"], STRIDE)]
    return script.router(pools, lines, "python -m sglang_router.launch_router", arguments)
