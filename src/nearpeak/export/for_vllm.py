"""Launch files for vLLM.

Flags as in the documentation of vLLM 0.2x (docs.vllm.ai: engine arguments, data parallel deployment, expert parallel
deployment, NixlConnector usage guide) and of its router (github.com/vllm-project/router).
"""

import json
from typing import TYPE_CHECKING

from nearpeak.errors import NearpeakError
from nearpeak.export import script
from nearpeak.export.placement import Servers, place
from nearpeak.export.weights import Weights, weights_of

if TYPE_CHECKING:
    from nearpeak.plan import Explained

Flag = tuple[str, str | int | None]

PORTS = {"serve": 8100, "prefill": 8100, "decode": 8200}
ALONE = 8000
"""Port of a server that needs no router."""
SIDE_CHANNEL = {"prefill": 5600, "decode": 6600}
"""First port of the handshake between prefill and decode; each worker takes one."""
RPC = 13345
"""Port over which the data-parallel ranks of a server find each other."""
NAMED = ('--served-model-name "$NAME"', '--host "$HOST"', '--max-model-len "$MAX_MODEL_LEN"')
KV = {"bf16": "auto", "fp8": "fp8"}


def vllm(plan: "Explained") -> dict[str, str]:
    """Launch files of a plan for vLLM: a script for each kind of server, and a router where there are several.

    Raises:
        NearpeakError: vLLM cannot express the plan.
    """
    pools = place(plan.setup)
    weights = weights_of(plan)
    routed = sum(p.replicas for p in pools) > 1
    files = {f"{p.role}.sh": _servers(plan, p, weights, routed, pools) for p in pools}
    if routed:
        files["router.sh"] = _router(pools)
    return files


def _servers(plan: "Explained", servers: Servers, weights: Weights, routed: bool, pools: tuple[Servers, ...]) -> str:
    port = PORTS[servers.role] if routed else ALONE
    notes = [*script.described(plan, servers, "vllm", "vLLM"), *weights.notes]
    vendor = plan.setup.node.device.vendor
    if servers.span > 1:
        start = [script.spanning_header(servers), _spanning(servers)]
        command = 'vllm serve "$MODEL" --port "$PORT" "${flags[@]}" "${mine[@]}"'
        start.append(" \\\n  ".join([*_side_channel(servers, spread=True), command]))
        body = "\n".join(start)
    else:
        command = 'vllm serve "$MODEL" --port $((PORT + i)) "${flags[@]}"'
        if servers.dp > 1 and min(servers.replicas, servers.per_node) > 1:
            command += f" --data-parallel-rpc-port $(({RPC} + i))"
        spread = len(pools) > 1 and servers.alone
        body = script.on_one_node(servers, vendor, command, _side_channel(servers, spread))
    if len(pools) > 1:
        notes += _transfer_notes(plan, pools)
    return script.script(
        notes,
        script.constants(plan, weights, port, routed),
        script.flag_array(NAMED, _flags(plan, servers, weights)),
        body,
    )


def _flags(plan: "Explained", servers: Servers, weights: Weights) -> list[Flag]:
    flags: list[Flag] = [("--tensor-parallel-size", servers.tp), ("--pipeline-parallel-size", servers.pp)]
    if servers.dp > 1:
        flags.append(("--data-parallel-size", servers.dp))
    if _spreads_experts(plan, servers):
        flags.append(("--enable-expert-parallel", None))
    flags += [
        ("--max-num-seqs", _in_flight(servers)),
        ("--max-num-batched-tokens", _chunk(plan, servers)),
        ("--kv-cache-dtype", _cache_format(plan)),
        ("--gpu-memory-utilization", _memory_share(plan, servers)),
    ]
    if weights.quantization:
        flags.append(("--quantization", weights.quantization))
    if servers.role != "serve":
        kind = "kv_producer" if servers.role == "prefill" else "kv_consumer"
        transfer = json.dumps({"kv_connector": "NixlConnector", "kv_role": kind}, separators=(",", ":"))
        flags.append(("--kv-transfer-config", transfer))
    return flags


def _spreads_experts(plan: "Explained", servers: Servers) -> bool:
    """Whether experts are spread over the devices (True) or cut among them: vLLM knows no mix of the two."""
    group = servers.tp * servers.dp
    if servers.dp > 1 and servers.moe_tp * servers.moe_ep == 1:
        raise NearpeakError(
            f"{plan.setup.model.name} has no experts that dp {servers.dp} attention replicas could share; use replicas"
        )
    if servers.moe_ep not in (1, group):
        raise NearpeakError(
            f"vLLM either spreads experts over all tp * dp = {group} devices or cuts each among them; moe_tp "
            f"{servers.moe_tp} x moe_ep {servers.moe_ep} is neither: plan with --engine vllm, or export for SGLang"
        )
    return servers.moe_ep > 1


def _in_flight(servers: Servers) -> int:
    """Requests that one attention replica runs at once. A prefill server works on one prompt in each pipeline stage."""
    return max(servers.batch, servers.pp) if servers.role == "prefill" else servers.batch


def _chunk(plan: "Explained", servers: Servers) -> int:
    from nearpeak.plan import record

    chunk = int(record(plan)["chunk"])
    if chunk < _in_flight(servers):
        raise NearpeakError(
            f"vLLM takes no fewer tokens in a step than requests: chunk {chunk}, {_in_flight(servers)} requests"
        )
    return chunk


def _cache_format(plan: "Explained") -> str:
    from nearpeak.plan import record

    kv = str(record(plan)["formats"]["kv"])
    if kv not in KV:
        raise NearpeakError(f"vLLM stores the KV cache as {' or '.join(KV)}, not as {kv}")
    return KV[kv]


def _memory_share(plan: "Explained", servers: Servers) -> str:
    """The share of a device's memory that the plan lets vLLM use for all it holds."""
    ledger = plan.memory["prefill" if servers.role == "prefill" else "decode"]
    return f"{1 - ledger['reserved'] / ledger['capacity']:.3f}"


def _side_channel(servers: Servers, spread: bool) -> list[str]:
    """Where the NIXL connectors of this pool's servers are met. ``spread``: the other pool is on other nodes."""
    if servers.role == "serve":
        return []
    base = SIDE_CHANNEL[servers.role]
    number = f"$(({base} + i * {servers.devices}))" if servers.span == 1 else str(base)
    port = [f"VLLM_NIXL_SIDE_CHANNEL_PORT={number}"]
    address = 'VLLM_NIXL_SIDE_CHANNEL_HOST="${ADDRESS:?address of this node, as the other nodes reach it}"'
    return [address, *port] if spread else port


def _spanning(servers: Servers) -> str:
    """Flags that differ between the nodes of one server. Other nodes than the first run without an API (headless)."""
    if servers.dp == 1:
        mine = f'mine=(--nnodes {servers.span} --node-rank "$rank" --master-addr "$HEAD")'
        headless = "mine+=(--headless)"
    elif servers.dp % servers.span == 0:
        local = servers.dp // servers.span
        mine = (
            f'mine=(--data-parallel-size-local {local} --data-parallel-address "$HEAD" --data-parallel-rpc-port {RPC})'
        )
        headless = f"mine+=(--headless --data-parallel-start-rank $((rank * {local})))"
    else:
        raise NearpeakError(
            f"dp {servers.dp} attention replicas of tp {servers.tp} x pp {servers.pp} devices do not divide among "
            f"{servers.span} nodes in whole replicas, which vLLM needs; choose another layout"
        )
    return f"{mine}\nif ((rank > 0)); then {headless}; fi"


def _transfer_notes(plan: "Explained", pools: tuple[Servers, ...]) -> list[str]:
    """What vLLM's NixlConnector Compatibility Matrix says about pools like these."""
    from nearpeak.workload import LinearAttention

    recurrent = any(isinstance(b.mixer, LinearAttention) for b in plan.setup.model.blocks)
    first, second = pools
    if recurrent and first.tp != second.tp:
        raise NearpeakError(
            f"vLLM's NixlConnector moves recurrent states only between equal tp, not from {first.tp} to {second.tp} "
            "(NixlConnector Compatibility Matrix); choose one tp for both pools"
        )
    notes = ["Both pools need NIXL (pip install nixl) and the same vLLM version."]
    if first.pp > 1 or second.pp > 1:
        notes.append("vLLM's NixlConnector Compatibility Matrix is silent on pipeline stages: try before use.")
    return notes


def _router(pools: tuple[Servers, ...]) -> str:
    lines = [
        "The router in front of the servers; start it when they answer. pip install vllm-router",
        "Each request goes to the less loaded of two servers drawn by chance, so that batches stay about equal.",
    ]
    arguments = ['--host "$HOST" --port "$PORT" --policy power_of_two']
    if len(pools) == 1:
        arguments += ["--worker-urls", *(url for url, _ in script.urls(pools[0], PORTS["serve"], 1))]
    else:
        arguments.append("--vllm-pd-disaggregation")
        for p in pools:
            arguments += [f"--{p.role} {url}" for url, _ in script.urls(p, PORTS[p.role], 1)]
    return script.router(pools, lines, "vllm-router", arguments)
