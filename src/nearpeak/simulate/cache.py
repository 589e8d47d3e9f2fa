"""The KV cache of an instance in blocks: what requests own, what prefixes hold, and what gives way (compiled).

A block is free, owned by one request, or part of a shared prefix. A prefix that no running request uses stays until
its blocks are needed, the one that was used longest ago first, from its end (as in vLLM's prefix caching).
"""

from nearpeak.simulate.compiled import compiled
from nearpeak.simulate.state import State


@compiled
def room(s: State, i: int) -> int:
    """Blocks of an instance that can be had: unused ones, and those of prefixes that none uses."""
    return s.i[i].free + s.i[i].idle


@compiled
def allot(s: State, i: int, blocks: int, block: int) -> None:
    """Take blocks out of what ``room`` says is there."""
    while s.i[i].free < blocks and s.i[i].oldest >= 0:
        p = s.i[i].oldest
        gone = min(blocks - s.i[i].free, s.p[i, p].held // block)
        s.p[i, p].held -= gone * block
        s.i[i].idle -= gone
        s.i[i].free += gone
        if s.p[i, p].held == 0:
            unlink(s, i, p)
    s.i[i].free -= blocks
    s.i[i].reused += blocks


@compiled
def give_back(s: State, i: int, blocks: int) -> None:
    """Return blocks; they are taken again in the order in which they came back."""
    s.i[i].free += blocks
    s.i[i].freed += blocks


@compiled
def leave_behind(s: State, i: int, r: int, blocks: int) -> None:
    """A request that will come back gives up its full blocks: until they are overwritten, it finds them again."""
    s.q[r].ghost, s.q[r].ghost_at = blocks, s.i[i].freed


@compiled
def come_back(s: State, i: int, r: int, most: int) -> int:
    """Blocks of those that a request gave up which it still finds, at most ``most``: its last ones go first.

    They leave the order in which free blocks are taken near its front, so that those behind them move up.
    """
    gone = max(0, s.i[i].reused - s.q[r].ghost_at)
    kept = min(max(0, s.q[r].ghost - gone), most)
    s.q[r].ghost = 0
    return kept


@compiled
def unlink(s: State, i: int, p: int) -> None:
    """Take a prefix out of the list of those that none uses."""
    older, newer = s.p[i, p].older, s.p[i, p].newer
    if older >= 0:
        s.p[i, older].newer = newer
    else:
        s.i[i].oldest = newer
    if newer >= 0:
        s.p[i, newer].older = older
    else:
        s.i[i].newest = older
    s.p[i, p].older = s.p[i, p].newer = -1


@compiled
def found(s: State, i: int, r: int, block: int) -> int:
    """Tokens of a request's prompt that the cache of an instance holds: whole blocks, and never the last token."""
    q = s.q[r]
    if q.prefix < 0:
        return 0
    whole = min(q.shared, q.isl + q.made - 1) // block * block
    return min(s.p[i, q.prefix].held, whole)


@compiled
def needed(s: State, i: int, r: int, block: int, tokens: int) -> int:
    """Blocks that admitting a request takes out of ``room``, with space for ``tokens`` tokens."""
    q = s.q[r]
    all_of_it = (tokens + block - 1) // block
    if q.prefix < 0:
        return all_of_it
    # Blocks in use by others cost nothing; those that none uses leave the room, as new ones do.
    if s.p[i, q.prefix].users == 0:
        return all_of_it
    whole = min(q.shared, q.isl + q.made - 1) // block
    return all_of_it - min(s.p[i, q.prefix].held // block, whole)


@compiled
def admit(s: State, i: int, r: int, block: int, tokens: int) -> int:
    """Allot the blocks of a request with space for ``tokens`` tokens; returns the tokens that it finds in the cache.

    Its shared prefix becomes the group's at once: a request after it in the same step finds it, as in vLLM.
    """
    q = s.q[r]
    all_of_it = (tokens + block - 1) // block
    kept = come_back(s, i, r, max(0, q.left - 1) // block) * block
    if q.prefix < 0:
        allot(s, i, all_of_it, block)
        s.q[r].blocks = all_of_it
        return kept
    p = q.prefix
    hit = found(s, i, r, block)
    whole = min(q.shared, q.isl + q.made - 1) // block
    if s.p[i, p].users == 0 and s.p[i, p].held > 0:
        held = s.p[i, p].held // block
        s.i[i].idle -= held
        unlink(s, i, p)
        # What others left behind that prefix is of no use to this request, and must not stand in its way.
        kept_blocks = min(held, whole)
        s.p[i, p].held = kept_blocks * block
        give_back(s, i, held - kept_blocks)
    s.p[i, p].users += 1
    new = max(0, whole - s.p[i, p].held // block)
    allot(s, i, all_of_it - whole + new, block)
    s.p[i, p].held += new * block
    s.q[r].blocks = all_of_it - whole
    return min(hit + kept, q.left - 1) if hit == whole * block else hit


@compiled
def release(s: State, i: int, r: int, own: int, cached: int, block: int) -> None:
    """Give back the ``own`` blocks of a request; its prefix stays while there is room.

    What a request of a group leaves behind (``cached`` tokens, its answer included) prolongs the group's prefix if it
    was the last to use it: the next turn of a conversation finds it.
    """
    p = s.q[r].prefix
    if p < 0:
        give_back(s, i, own)
        return
    s.p[i, p].users -= 1
    if s.p[i, p].users > 0:
        give_back(s, i, own)
        return
    longer = max(0, min(own, cached // block - s.p[i, p].held // block))
    s.p[i, p].held += longer * block
    give_back(s, i, own - longer)
    if s.p[i, p].held > 0:
        s.i[i].idle += s.p[i, p].held // block
        newest = s.i[i].newest
        s.p[i, p].older, s.p[i, p].newer = newest, -1
        if newest >= 0:
            s.p[i, newest].newer = p
        else:
            s.i[i].oldest = p
        s.i[i].newest = p
