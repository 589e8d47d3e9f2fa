"""Hierarchical all-reduce: inside each node at first and at last, by recursive doubling between nodes.

The algorithm of NVRAR (Singhania et al., "LLM Inference Beyond a Single Node", arXiv:2511.09557, 2025), on the sends
and receives of ``torch.distributed``, so that it runs on any backend. With ``g`` devices in each of ``n`` nodes and a
vector of ``s`` bytes:

1. reduce-scatter inside the node: device ``i`` gets part ``i`` of all its peers and adds them up, ``s / g`` bytes each;
2. recursive doubling: devices of equal place exchange their part with the node at distance 1, 2, 4, ... and add,
   ``log2(n)`` rounds of ``s / g`` bytes;
3. all-gather inside the node.

A ring through all devices passes ``2 (n g - 1)`` messages one after another, this one ``log2(n)`` between nodes: it
pays where latency counts. ``nearpeak.cost`` says where (``collective`` with ``way="doubling"``).
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from nearpeak.errors import UsageError


@dataclass(frozen=True)
class Rounds:
    """Messages of this rank that followed one another: inside its node, and between nodes."""

    inside: int
    between: int


def hierarchical_all_reduce(x: torch.Tensor, devices: int, group: dist.ProcessGroup | None = None) -> Rounds:
    """Sum ``x`` over all ranks, in place. Rank ``r`` of the group is in node ``r // devices``.

    Every rank gets the same sum to the bit within a part, since partners add the same two values. If the nodes are no
    power of two, those beyond the largest one hand their part to a partner before the rounds and get the sum after.

    Args:
        x: any shape, contiguous, alike on all ranks. devices: ranks in each node.

    Raises:
        UsageError: the group is not made of whole nodes, or the tensor is not contiguous.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    if devices < 1 or ranks % devices:
        raise UsageError(f"{ranks} ranks are not whole nodes of {devices} devices; give a divisor of {ranks}")
    if not x.is_contiguous():
        raise UsageError(f"a tensor of strides {x.stride()} is not contiguous; all-reduce x.contiguous()")
    node, place = divmod(rank, devices)
    peers = [node * devices + i for i in range(devices)]
    parts = list(x.view(-1).tensor_split(devices))
    _reduce_scatter(parts, place, peers, group)
    between = _doubling(parts[place], [k * devices + place for k in range(ranks // devices)], node, group)
    _all_gather(parts, place, peers, group)
    return Rounds(2 if devices > 1 else 0, between)


def _reduce_scatter(parts: list[torch.Tensor], place: int, peers: list[int], group: dist.ProcessGroup | None) -> None:
    """Add the peers' versions of this rank's part to it: all sends and receives at once."""
    others = [i for i in range(len(peers)) if i != place]
    received = {i: torch.empty_like(parts[place]) for i in others}
    _exchange([(parts[i], peers[i]) for i in others], [(received[i], peers[i]) for i in others], group)
    for i in others:
        parts[place] += received[i]


def _all_gather(parts: list[torch.Tensor], place: int, peers: list[int], group: dist.ProcessGroup | None) -> None:
    """Send this rank's part to the peers and take theirs."""
    others = [i for i in range(len(peers)) if i != place]
    _exchange([(parts[place], peers[i]) for i in others], [(parts[i], peers[i]) for i in others], group)


def _doubling(part: torch.Tensor, ranks: list[int], node: int, group: dist.ProcessGroup | None) -> int:
    """Sum a part over ``ranks``, one in each node; this one is in ``node``. Returns this rank's rounds."""
    paired = 1 << (len(ranks).bit_length() - 1)  # the largest power of two among the nodes
    received, rounds = torch.empty_like(part), 0
    if node >= paired:
        partner = ranks[node - paired]
        _exchange([(part, partner)], [], group)
        _exchange([], [(part, partner)], group)
        return 2
    extra = node + paired < len(ranks)
    if extra:
        _exchange([], [(received, ranks[node + paired])], group)
        part += received
        rounds += 1
    distance = 1
    while distance < paired:
        partner = ranks[node ^ distance]
        _exchange([(part, partner)], [(received, partner)], group)
        part += received
        distance, rounds = 2 * distance, rounds + 1
    if extra:
        _exchange([(part, ranks[node + paired])], [], group)
        rounds += 1
    return rounds


def _exchange(
    sent: list[tuple[torch.Tensor, int]], received: list[tuple[torch.Tensor, int]], group: dist.ProcessGroup | None
) -> None:
    """Send and receive ``(tensor, rank of the group)`` pairs, all at once, and wait for them."""
    moves = [(dist.isend, sent), (dist.irecv, received)]
    steps = [dist.P2POp(f, t, group=group, group_peer=peer) for f, pairs in moves for t, peer in pairs if t.numel()]
    for request in dist.batch_isend_irecv(steps) if steps else []:
        request.wait()
