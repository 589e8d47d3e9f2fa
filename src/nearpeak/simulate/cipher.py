"""The host threads that encrypt for a GPU in confidential mode, on the simulator's clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nearpeak.cost.copies import START
from nearpeak.simulate.speculation import Channel, Sealed

Mode = Literal["clear", "on_demand", "ahead"]
MODES: tuple[Mode, ...] = ("clear", "on_demand", "ahead")
ENCRYPTION = 6e9
"""Bytes/s that one host core encrypts or decrypts with AES-GCM; assumed: cores of current servers with wide AES
instructions do 4 to 8 GB/s, and tests of H100 in confidential mode show copies of about 5 to 6 GB/s."""
NOP = START
"""Seconds of a copy of nothing: what starting a copy takes."""


@dataclass(frozen=True)
class Run:
    """What a simulated run of copies shows.

    Attributes:
        seconds: of the part that counts. hits: copies whose ciphertext was ready or under way. copies: in all.
        nops: copies of nothing. encrypted: ciphertexts made (or begun), those that were never sent included.
    """

    seconds: float
    hits: int = 0
    copies: int = 0
    nops: int = 0
    encrypted: int = 0


class Cipher:
    """The encrypting threads as one server: first what is asked for, then decryption, then what is guessed to go next.

    Jobs are decryptions (numbers) and ciphertexts to make, in the order of their counters.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.left: dict[Sealed | int, float] = {}
        self.encrypted = 0

    def add(self, job: Sealed | int, seconds: float) -> None:
        """Put work on the list."""
        self.left[job] = seconds
        self.encrypted += 1

    def drop(self, jobs: Sequence[Sealed]) -> None:
        """Take work off the list that nobody needs any more."""
        for job in jobs:
            self.left.pop(job, None)

    def until(self, time: float) -> None:
        """Work on what waits until this time."""
        while self.left and self.clock < time:
            job = min(self.left, key=lambda j: j.counter if isinstance(j, Sealed) else -1)
            done = min(self.left[job], time - self.clock)
            self.clock += done
            self.left[job] -= done
            if self.left[job] <= 0:
                del self.left[job]
        self.clock = max(self.clock, time)

    def now(self, time: float, seconds: float) -> float:
        """When work that is asked for at ``time`` is done; what waits is put off."""
        self.until(time)
        self.clock += seconds
        return self.clock


def guess(channel: Channel, cipher: Cipher, items: Sequence[tuple[int, int]], seconds: Callable[[int], float]) -> None:
    """Encrypt the items that are guessed to come next, as far as they are not encrypted already."""
    new, vain = channel.foresee(items)
    cipher.drop(vain)
    for sealed in new:
        cipher.add(sealed, seconds(sealed.item))
