"""The safetensors file format: an 8-byte length, a JSON header, the tensors' bytes. Read and written piece by piece.

Nothing here holds more than what is asked for, and nothing trusts a file's header before it has been compared with the
file's size. Format: https://huggingface.co/docs/safetensors (tensors lie without gaps, little-endian, row-major).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from nearpeak.compress.atomic import replacing
from nearpeak.errors import NearpeakError

Shape = tuple[int, ...]

DTYPES: dict[str, torch.dtype] = {
    "I64": torch.int64,
    "I32": torch.int32,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Number formats that this room computes with. Others are copied byte by byte."""

_NAMES_BY_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    16: ("I16", "U16", "F16", "BF16"),
    32: ("I32", "U32", "F32"),
    64: ("I64", "U64", "F64", "C64"),
}
_BITS = {name: bits for bits, names in _NAMES_BY_BITS.items() for name in names}
_MAX_HEADER = 100_000_000  # bytes; the limit of the reference implementation
_CHUNK = 1 << 24  # bytes copied at once


@dataclass(frozen=True)
class Tensor:
    """A tensor as a header describes it. ``start``, ``end``: its bytes in the file, from the file's beginning."""

    dtype: str
    shape: Shape
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.end - self.start


def size(dtype: str, shape: Shape) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * _BITS[dtype] // 8


def read_header(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bytes]:
    """Tensors by name, the metadata, and the raw header of a safetensors file, without reading its tensors.

    Raises:
        NearpeakError: the file is truncated or longer than its header says, or the header is not one.
    """
    actual = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(_MAX_HEADER, actual - 8):
            raise NearpeakError(
                f"{path} is not a whole safetensors file: its header takes {8 + length} bytes, the file has {actual}; "
                "copy or download it again"
            )
        raw = file.read(length)
    try:
        described = json.loads(raw)
        metadata = described.pop("__metadata__", {})
        tensors = {
            name: Tensor(t["dtype"], tuple(t["shape"]), *(8 + length + offset for offset in t["data_offsets"]))
            for name, t in described.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NearpeakError(f"{path} has a header that is not safetensors: {error!r}; download it again") from error
    _check_offsets(path, tensors, 8 + length, actual)
    return tensors, metadata, raw


def _check_offsets(path: Path, tensors: Mapping[str, Tensor], first: int, actual: int) -> None:
    expected = max((t.end for t in tensors.values()), default=first)
    if expected != actual:
        raise NearpeakError(
            f"{path} should have {expected} bytes by its header and has {actual}; copy or download it again"
        )
    end = first
    for name, t in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if t.dtype not in _BITS:
            raise NearpeakError(f"{path}: tensor {name} has the unknown number format {t.dtype!r}")
        if t.start != end or t.bytes != size(t.dtype, t.shape):
            raise NearpeakError(
                f"{path}: tensor {name} ({t.dtype}, shape {list(t.shape)}) cannot lie at bytes {t.start} to {t.end} "
                f"behind byte {end}; the file is damaged, download it again"
            )
        end = t.end


def read_tensor(path: Path, tensor: Tensor) -> torch.Tensor:
    """One tensor, in memory of its own."""
    data = bytearray(tensor.bytes)
    with path.open("rb") as file:
        file.seek(tensor.start)
        if file.readinto(data) != tensor.bytes:
            raise NearpeakError(f"{path} became shorter while it was read")
    dtype = DTYPES[tensor.dtype]
    return torch.frombuffer(data, dtype=dtype).view(tensor.shape) if data else torch.empty(tensor.shape, dtype=dtype)


def read_chunks(path: Path, tensor: Tensor) -> Iterator[bytes]:
    """The bytes of one tensor, some MB at a time."""
    with path.open("rb") as file:
        file.seek(tensor.start)
        for start in range(tensor.start, tensor.end, _CHUNK):
            chunk = file.read(min(_CHUNK, tensor.end - start))
            if not chunk:
                raise NearpeakError(f"{path} became shorter while it was read")
            yield chunk


def layout(tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, Tensor]]:
    """Head (length and header) and places of a file that holds ``tensors`` (name -> dtype, shape).

    Wide types come first and the header is padded to 8 bytes, so that every tensor is aligned to its type.
    """
    order = sorted(tensors, key=lambda name: (-_BITS[tensors[name][0]], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        dtype, shape = tensors[name]
        end = offset + size(dtype, shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, end)}
        offset = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    head = len(raw).to_bytes(8, "little") + raw
    places: dict[str, Tensor] = {}
    start = len(head)
    for name in order:
        dtype, shape = tensors[name]
        places[name] = Tensor(dtype, shape, start, start + size(dtype, shape))
        start = places[name].end
    return head, places


Put = Callable[[str, torch.Tensor | Iterable[bytes]], None]


@contextmanager
def writing(path: Path, tensors: Mapping[str, tuple[str, Shape]], metadata: Mapping[str, str]) -> Iterator[Put]:
    """Write a file of ``tensors`` (name -> dtype, shape) atomically, one tensor at a time, in any order.

    The block gets ``put(name, data)``, where data is a tensor or the bytes of one, and must call it for each name.
    """
    head, places = layout(tensors, metadata)
    missing = set(places)
    with replacing(path) as file:
        file.write(head)

        def put(name: str, data: torch.Tensor | Iterable[bytes]) -> None:
            place = places[name]
            chunks = [raw_bytes(data)] if isinstance(data, torch.Tensor) else data
            file.seek(place.start)
            written = sum(file.write(chunk) for chunk in chunks)
            if written != place.bytes:
                raise NearpeakError(f"{path}: {name} takes {place.bytes} bytes, {written} were given")
            missing.discard(name)

        yield put
        if missing:
            raise NearpeakError(f"{path} was left without {', '.join(sorted(missing)[:5])}")


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
