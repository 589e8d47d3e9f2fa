"""Reading a config without guessing: every field is asked for by name, and a field nobody asked for is an error.

A ``Fields`` remembers which keys a family's reader used. ``finish`` then raises for every key left over, unless it is
known not to change any shape (see ``harmless``). So a model that differs from its
family in a way the reader does not know is refused, never misread.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nearpeak.errors import UsageError
from nearpeak.workload.harmless import is_harmless

Config = Mapping[str, Any]


class Fields:
    """The fields of one config (or of a config inside it), and which of them were read.

    ``null`` counts as absent, as in the configs themselves.
    """

    def __init__(self, config: Config, family: str, name: str, path: str = "") -> None:
        self.config, self.family, self.name, self.path = config, family, name, path
        self._used: set[str] = set()
        self._inner: list[Fields] = []

    def error(self, what: str) -> UsageError:
        """An error about this config."""
        where = f" ({self.path.rstrip('.')})" if self.path else ""
        return UsageError(f"model {self.name!r} of type {self.family!r}{where}: {what}")

    def get(self, key: str) -> Any:  # noqa: ANN401 - a config's value may be anything
        """The value, or None where absent."""
        self._used.add(key)
        return self.config.get(key)

    def has(self, key: str) -> bool:
        """Whether the key has a value."""
        return self.get(key) is not None

    def integer(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """The whole number under the first of ``keys`` that has a value.

        Raises:
            UsageError: absent without a default, not a whole number, less than ``least``, or two keys disagree.
        """
        found = {k: v for k in keys if (v := self.get(k)) is not None}
        if not found:
            if default is None:
                raise self.error(f"needs a value for {' or '.join(map(repr, keys))}")
            return default
        if len(set(map(str, found.values()))) > 1:
            raise self.error("fields contradict each other: " + ", ".join(f"{k} = {v!r}" for k, v in found.items()))
        key, value = next(iter(found.items()))
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(f"{self.path}{key} = {value!r}; a whole number of at least {least} is needed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """The boolean under ``key``; ``default`` is what the family's published code takes where it is absent."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(f"{self.path}{key} = {value!r}; true or false is needed")
        return value

    def choice(self, key: str, allowed: Sequence[Any], default: Any = None) -> Any:  # noqa: ANN401
        """The value under ``key``, which must be one of ``allowed``: the settings that the reader can place."""
        value = self.get(key)
        value = default if value is None else value
        if value not in allowed:
            raise self.error(f"{self.path}{key} = {value!r} is not supported; only {', '.join(map(repr, allowed))}")
        return value

    def per_layer(self, key: str, layers: int, allowed: Sequence[Any] | None = None) -> list[Any] | None:
        """A list with one entry for each layer, or None where absent.

        Raises:
            UsageError: of another length, or an entry not in ``allowed``.
        """
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != layers:
            shown = f"{len(value)} entries" if isinstance(value, list) else repr(value)
            raise self.error(f"{self.path}{key} has {shown} for {layers} layers")
        if allowed is not None and (strange := sorted({str(v) for v in value if v not in allowed})):
            known = ", ".join(map(str, allowed))
            raise self.error(f"{self.path}{key} names {', '.join(strange)}; only {known} is known")
        return value

    def integers(self, key: str) -> list[int]:
        """A list of whole numbers, empty where absent."""
        value = self.get(key) or []
        if not isinstance(value, list) or not all(isinstance(v, int) for v in value):
            raise self.error(f"{self.path}{key} = {value!r}; a list of whole numbers is needed")
        return value

    def inner(self, key: str) -> "Fields":
        """The config under ``key``.

        Raises:
            UsageError: absent, or not an object.
        """
        value = self.get(key)
        if not isinstance(value, Mapping):
            raise self.error(f"needs an object under {self.path}{key}, not {value!r}")
        inner = Fields(value, self.family, self.name, f"{self.path}{key}.")
        self._inner.append(inner)
        return inner

    def ignore(self, *keys: str) -> None:
        """Declares that these keys change nothing in this family. Each call says in a comment why."""
        self._used.update(keys)

    def unread(self) -> list[str]:
        """Keys with a value that were neither read nor are known to be harmless."""
        own = [
            f"{self.path}{key}"
            for key, value in self.config.items()
            if key not in self._used and not is_harmless(key) and value not in (None, [], {}, False)
        ]
        return own + [key for inner in self._inner for key in inner.unread()]

    def finish(self) -> None:
        """Raises for keys that nothing has placed.

        Raises:
            UsageError: naming them.
        """
        if left := self.unread():
            raise self.error(
                f"cannot place {', '.join(left)}: the model differs from its family in a way nearpeak does not know. "
                "Remove a field that changes no shape; for one that does, the family needs a new reader."
            )
