"""The shape that all launch scripts share: what the plan is in comments, then constants, flags and servers in bash."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nearpeak.export.placement import VISIBLE, Servers

if TYPE_CHECKING:
    from nearpeak.export.weights import Weights
    from nearpeak.plan import Explained

FIGURES = (
    ("ttft", "mean time to first token", 1e3, "ms"),
    ("tpot", "mean time per later token", 1e3, "ms"),
    ("tokens_per_second_per_device", "output per device", 1.0, "tokens/s"),
)
ROUTER_PORT = 8000


def comment(*lines: str) -> str:
    """Bash comments. A line break inside a line (a name can hold anything) starts a comment of its own."""
    return "\n".join(f"# {part}".rstrip() for line in lines for part in (line.splitlines() or [""]))


def described(plan: "Explained", servers: Servers, engine: str, title: str) -> list[str]:
    """Which plan this is, what it is predicted to do and where to run the script, for a person who reads it later."""
    from nearpeak import __version__
    from nearpeak.plan import record

    plain = record(plan)
    node = plan.setup.node
    lines = [
        f"{title} servers ({servers.role}), written by nearpeak {__version__}",
        "",
        f"model       {plain['model']}",
        f"formats     {', '.join(f'{part} {name}' for part, name in plain['formats'].items())}",
        f"devices     {plain['devices']} x {node.device.title}, in nodes of {node.count}",
        f"traffic     {plain['isl']:g} prompt and {plain['osl']:g} answer tokens, on average",
        f"techniques  {', '.join(plan.techniques) or 'none'}",
        "",
        f"Predicted (80 % interval; evidence: {plan.figures['tpot'].evidence}):",
    ]
    for name, title, scale, unit in FIGURES:
        f = plan.figures[name]
        lines.append(f"  {title:26} {f.value * scale:.4g} {unit} ({f.low * scale:.4g} to {f.high * scale:.4g})")
    if plain["engine"] != engine:
        lines.append(f"These figures are predictions for {plain['engine']}, not for {engine}.")
    each = f"tp {servers.tp}, pp {servers.pp}, dp {servers.dp}, ep {servers.moe_ep}"
    several = f"Run it on each of {servers.nodes} nodes, with the node's number from 0."
    return [
        *lines,
        "",
        f"These servers: {servers.replicas} x ({each}), {servers.batch} in flight in each attention replica.",
        several if servers.nodes > 1 else "Run it on one node.",
    ]


def constants(plan: "Explained", weights: "Weights", port: int, routed: bool) -> str:
    """The bash variables that a person may want to change. ``routed``: a router counts on the port."""
    import numpy as np

    setup = plan.setup
    longest = int(np.ceil(float(np.asarray(setup.isl)) + float(np.asarray(setup.osl))))
    model = '"${MODEL_DIR:-$NAME}" # MODEL_DIR: a local copy, where there is one'
    if weights.made:
        model = '"${MODEL_DIR:?give the folder of the checkpoint, see above}"'
    return "\n".join(
        [
            f"NAME={shlex.quote(setup.model.name)}",
            f"MODEL={model}",
            'HOST="${HOST:-0.0.0.0}"',
            f"PORT={port} # of the first server; router.sh counts on it" if routed else f'PORT="${{PORT:-{port}}}"',
            "# Tokens that prompt and answer of one request may have together: the plan's means. Raise it to the",
            f"# longest that you serve (the model: {setup.model.context}); the plan's memory is for its means.",
            f'MAX_MODEL_LEN="${{MAX_MODEL_LEN:-{longest}}}"',
        ]
    )


def flag_array(named: Sequence[str], flags: Sequence[tuple[str, str | int | None]]) -> str:
    """A bash array of flags.

    Args:
        named: flags whose values are bash variables, as bash words.
        flags: flags with constant values (None: the flag stands alone).
    """
    lines = [flag if value is None else f"{flag} {shlex.quote(str(value))}" for flag, value in flags]
    return "\n".join(["flags=(", *(f"  {line}" for line in [*named, *lines]), ")"])


def on_one_node(servers: Servers, vendor: str, launch: str, more: Sequence[str] = ()) -> str:
    """Bash that starts this node's servers, each on devices of its own, and stops all when one ends.

    Args:
        servers: the pool.
        vendor: of its devices.
        launch: the command; it may use ``$i``, the number of the server on its node.
        more: assignments of environment variables before the command.
    """
    before = list(more)
    if servers.pinned:
        before.insert(0, f'{VISIBLE[vendor]}="$(seq -s, "$first" $((first + {servers.devices - 1})))"')
    if servers.replicas == 1:
        command = " \\\n  ".join([*before, launch])
        return (f"first={servers.first} # device\n" if servers.pinned else "") + f"i=0 # the only server\n{command}"
    here, there = min(servers.per_node, servers.replicas), ""
    if servers.nodes > 1:
        there = f" && NODE * {servers.per_node} + i < {servers.replicas}"
    command = " \\\n    ".join([*before, launch])
    lines = [
        "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT # when one server ends, stop the others",
        f"for ((i = 0; i < {here}{there}; i++)); do",
        *[f"  first=$(({servers.first} + i * {servers.devices})) # device"] * servers.pinned,
        f"  {command} &",
        "done",
        "wait -n",
    ]
    return "\n".join([_which_node(servers)] * (servers.nodes > 1) + lines)


def spanning_header(servers: Servers) -> str:
    """Bash that reads which node of which server this is: ``$rank`` in its server, whose first node is ``$HEAD``."""
    return "\n".join(
        [
            _which_node(servers),
            f"rank=$((NODE % {servers.span})) # servers take {servers.span} nodes each",
            'HEAD="${HEAD:?address of the first node of this server}"',
        ]
    )


def _which_node(servers: Servers) -> str:
    return f'NODE="${{1:?which of the {servers.nodes} nodes this is, from 0}}"'


def node_lists(pools: Sequence[Servers]) -> str:
    """Bash arrays of the nodes of each pool, from the environment, checked for their number."""
    lines = []
    for servers in pools:
        name = variable(servers)
        if servers.nodes == 1 and (len(pools) == 1 or not servers.alone):
            lines.append(f'read -ra {name.lower()} <<< "${{{name}:-127.0.0.1}}"')
        else:
            what = f"the nodes of {servers.role}.sh in order, {servers.nodes} separated by spaces"
            lines.append(f'read -ra {name.lower()} <<< "${{{name}:?{what}}}"')
        wrong = f"{name} names ${{#{name.lower()}[@]}} nodes; the plan has {servers.nodes}"
        lines.append(f'((${{#{name.lower()}[@]}} == {servers.nodes})) || {{ echo "{wrong}" >&2; exit 2; }}')
    return "\n".join(lines)


def variable(servers: Servers) -> str:
    """Name of the environment variable that holds a pool's nodes."""
    return "NODES" if servers.role == "serve" else f"{servers.role.upper()}_NODES"


def urls(servers: Servers, port: int, stride: int) -> list[tuple[str, int]]:
    """Each server's URL in bash, and its number on its node."""
    array = variable(servers).lower()
    if servers.span > 1:
        return [(f'"http://${{{array}[{i * servers.span}]}}:{port}"', 0) for i in range(servers.replicas)]
    places = (divmod(i, servers.per_node) for i in range(servers.replicas))
    return [(f'"http://${{{array}[{node}]}}:{port + i * stride}"', i) for node, i in places]


def router(pools: Sequence[Servers], lines: Sequence[str], launch: str, arguments: Sequence[str]) -> str:
    """The script of the router in front of the servers."""
    command = " \\\n  ".join([launch, *arguments])
    return script(
        lines,
        'HOST="${HOST:-0.0.0.0}"\n' + f'PORT="${{PORT:-{ROUTER_PORT}}}"',
        node_lists(pools),
        f"exec {command}",
    )


def script(lines: Sequence[str], *parts: str) -> str:
    """A whole bash script: comments, then parts with a blank line between them."""
    return "\n\n".join(["#!/usr/bin/env bash\n" + comment(*lines), "set -euo pipefail", *filter(None, parts)]) + "\n"
