"""What will be asked for next, and items encrypted ahead under counters that must not run backwards.

The channel to a GPU in confidential mode encrypts each copy with AES-GCM under a counter (the IV) that both ends raise
by one per copy: a ciphertext made ahead is of use only if it is sent as exactly the copy whose counter it was made
under. Tan et al., "PipeLLM: Fast and Confidential Large Language Model Services with Speculative Pipelined Encryption",
ASPLOS 2025 (arXiv 2411.03357), guess the order of copies, encrypt under the counters to come, and repair wrong guesses:

- counters that nobody takes are used up by copies of nothing (*NOP padding*);
- guessed counters leave ``slack`` free between them, so that a copy nobody guessed goes between two that were;
- what was guessed but passed by, or changed since, is encrypted again, and nothing else is.

Items are whole numbers: layers, requests. The clock is not here: the simulator (``simulate.confidential``) and real
AES-GCM (``decode.confidential``) share this.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True)
class Sealed:
    """An item of which a ciphertext was made, or is to be made, under ``counter``. ``version``: of its content."""

    item: int
    version: int
    counter: int


@dataclass(frozen=True)
class Sent:
    """What a copy takes.

    Attributes:
        counter: that it is sent under. nops: copies of nothing before it.
        ahead: its ciphertext, None where it has to be encrypted now. lost: ciphertexts whose counters have passed.
    """

    counter: int
    nops: int
    ahead: Sealed | None
    lost: tuple[Sealed, ...]


class Channel:
    """One direction of an encrypted channel: the next counter, and ciphertexts that wait for theirs.

    Args:
        slack: counters left free before each guess.
    """

    def __init__(self, slack: int = 1) -> None:
        self.slack = slack
        self.next = 0
        self.waiting: list[Sealed] = []

    def send(self, item: int, version: int = 0) -> Sent:
        """Send an item now, with its ciphertext if one waits for a counter to come, else under the next counter."""
        for i, sealed in enumerate(self.waiting):
            if (sealed.item, sealed.version) == (item, version):
                sent = Sent(sealed.counter, sealed.counter - self.next, sealed, tuple(self.waiting[:i]))
                self.next, self.waiting = sealed.counter + 1, self.waiting[i + 1 :]
                return sent
        lost = tuple(s for s in self.waiting if s.counter == self.next)
        self.waiting = self.waiting[len(lost) :]
        self.next += 1
        return Sent(self.next - 1, 0, None, lost)

    def foresee(self, guesses: Sequence[tuple[int, int]]) -> tuple[list[Sealed], list[Sealed]]:
        """Take the guess that these (item, version) come next, in this order.

        Of the ciphertexts that wait as many are kept as come in the guessed order (a longest increasing subsequence of
        their counters). The others guessed get counters between them, where any are free; so that the first always has
        one, what is in its way is given up.

        Returns:
            What is to be encrypted, and what waited in vain. The latter never left private memory, and its counters are
            given again: the caller must forget it.
        """
        places: dict[tuple[int, int], list[int]] = {}
        for i, sealed in enumerate(self.waiting):
            places.setdefault((sealed.item, sealed.version), []).append(i)
        at = [places[g].pop(0) if places.get(g) else None for g in guesses]
        kept = sorted(_longest_increasing(at))
        if kept and kept[0] > 0 and self._counter(at[kept[0]]) == self.next:
            kept = kept[1:]
        queue: list[Sealed] = []
        last, k = self.next - 1, 0
        for upper in [*kept, None]:
            end = len(guesses) if upper is None else upper
            if upper is None:
                counters = [last + (1 + self.slack) * (n + 1) for n in range(end - k)]
            else:
                bound = self._counter(at[upper])
                room = min(end - k, bound - 1 - last)
                counters = list(range(bound - room, bound))
            queue += [Sealed(*guess, c) for guess, c in zip(guesses[k : k + len(counters)], counters, strict=True)]
            if upper is not None:
                queue.append(self.waiting[at[upper] or 0])
                last, k = queue[-1].counter, upper + 1
        before, after = set(self.waiting), set(queue)
        vain, self.waiting = [s for s in self.waiting if s not in after], queue
        return [s for s in queue if s not in before], vain

    def _counter(self, place: int | None) -> int:
        return self.waiting[place or 0].counter


def _longest_increasing(values: Sequence[int | None]) -> set[int]:
    """Indices of a longest strictly increasing subsequence of the values that are not None."""
    tails: list[int] = []
    ends: list[int] = []
    before: dict[int, int | None] = {}
    for k, value in enumerate(values):
        if value is None:
            continue
        place = bisect_left(tails, value)
        before[k] = ends[place - 1] if place else None
        tails[place : place + 1], ends[place : place + 1] = [value], [k]
    found: set[int] = set()
    at = ends[-1] if ends else None
    while at is not None:
        found.add(at)
        at = before[at]
    return found


class Predictor:
    """Guesses which items outside the device come to it next, from the order in which they left and came.

    Three patterns are tried on every copy, and the one that was right most often of late is believed: *cycle*, what
    followed an item the last time follows it again (layers in their order); *lifo*, what left last comes first
    (requests that were preempted); *fifo*, what left first.

    Args:
        memory: share of its record that a pattern keeps at each copy.
    """

    def __init__(self, memory: float = 0.9) -> None:
        self.memory = memory
        self.right = {"cycle": 0.0, "lifo": 0.0, "fifo": 0.0}
        self.outside: dict[int, None] = {}
        self.follows: dict[int, int] = {}
        self.last: int | None = None

    @property
    def pattern(self) -> str:
        """The one that is believed now."""
        return max(self.right, key=lambda name: self.right[name])

    def left(self, item: int) -> None:
        """An item left the device and may be asked for again."""
        self.outside.pop(item, None)
        self.outside[item] = None

    def came(self, item: int) -> None:
        """An item was asked for."""
        for name in self.right:
            hit = next(iter(self._guess(name, 1)), None) == item
            self.right[name] = self.memory * self.right[name] + (1 - self.memory) * hit
        self.outside.pop(item, None)
        if self.last is not None:
            self.follows[self.last] = item
        self.last = item

    def ahead(self, depth: int) -> list[int]:
        """The next ``depth`` items, as far as the pattern tells."""
        return self._guess(self.pattern, depth)

    def _guess(self, name: str, depth: int) -> list[int]:
        if name == "lifo":
            return list(islice(reversed(self.outside), depth))
        if name == "fifo":
            return list(islice(self.outside, depth))
        found: list[int] = []
        at = None if self.last is None else self.follows.get(self.last)
        while at is not None and len(found) < depth and at in self.outside and at not in found:
            found.append(at)
            at = self.follows.get(at)
        return found
