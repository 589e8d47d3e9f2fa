"""Errors that a person can act on: each names the offending value, the allowed ones, and the way out."""

import difflib
from collections.abc import Iterable


class NearpeakError(Exception):
    """Something was asked that cannot be done. The command line prints the message and exits with ``exit_code``."""

    exit_code = 1


class UsageError(NearpeakError):
    """What was asked does not make sense as asked: an unknown name, a value out of range, a goal without a unit."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is in no catalogue.

    Args:
        kind: what was looked up, in the singular ("device", "model").
        name: what the user wrote.
        known: the names that would have worked.
        way_out: what to do when none of the known names will do.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], way_out: str = "") -> None:
        known = sorted(known)
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known[:20])}"
        more = " …" if not close and len(known) > 20 else ""
        super().__init__(f"unknown {kind} {name!r}; {hint}{more}" + (f" {way_out}" if way_out else ""))
