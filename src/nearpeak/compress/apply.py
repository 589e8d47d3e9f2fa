"""Carry a weight-compression technique out on a checkpoint folder: shard by shard, resumable, verified, all or nothing.

``OUT.partial`` grows beside ``OUT`` while the job runs and becomes ``OUT`` by a rename at the end, when every tensor
has been read back and compared with what was meant. A job that was killed goes on behind its last finished shard.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nearpeak import __version__
from nearpeak.compress.atomic import replacing, sync_folder, write_json
from nearpeak.compress.checkpoint import Shard
from nearpeak.compress.job import Estimate, Job, predict, prepare
from nearpeak.compress.journal import Journal, open_journal
from nearpeak.compress.pack_quantized import read_linear
from nearpeak.compress.packing import pack
from nearpeak.compress.process_memory import peak_memory, resident_memory
from nearpeak.compress.quantizers import Scheme, dequantize, is_finite, relative_error, row_blocks
from nearpeak.compress.rtn import nearest
from nearpeak.compress.safetensors_file import raw_bytes, read_chunks, read_header, read_tensor, writing
from nearpeak.errors import NearpeakError, UnknownName, UsageError

REPORT = "nearpeak_report.json"

Solver = Callable[[torch.Tensor, Scheme], tuple[torch.Tensor, torch.Tensor]]

SOLVERS: dict[str, Solver] = {"rtn": nearest}
"""Technique -> function of a weight ``[out, in]`` and a scheme, to codes ``[out, in]`` and scales ``[out, groups]``."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: bytes of the source done and in all, and the tensor finished last."""

    done: int
    total: int
    tensor: str


@dataclass(frozen=True)
class Layer:
    """A quantized layer. ``error``: ||W - Q|| / ||W|| in the Frobenius norm."""

    name: str
    bits: int
    group: int
    error: float


@dataclass(frozen=True)
class Kept:
    """A matrix that stays as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What a job did.

    Attributes:
        out: the folder written. layers, kept: every matrix of the model is in one of them.
        left_out: files of the source that were not carried over: weights in other formats.
        estimate: what was predicted. written: bytes written, this report excepted.
        peak_memory: bytes held at most beyond what the process held before; None if the process had held more before,
            or where the system does not say.
        seconds: time of this run. resumed: shards that an earlier run had finished.
    """

    out: Path
    technique: str
    layers: tuple[Layer, ...]
    kept: tuple[Kept, ...]
    left_out: tuple[str, ...]
    estimate: Estimate
    written: int
    peak_memory: int | None
    seconds: float
    resumed: int


def estimate(
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    technique: str = "rtn",
    bits: int = 4,
    group: int = 128,
    ignore: Sequence[str] = (),
) -> Estimate:
    """Disk and memory that ``apply`` with these arguments takes. Reads headers only and writes nothing.

    Raises:
        UsageError, NearpeakError: as ``apply`` does before it starts.
    """
    job, out = _prepare(model_dir, out_dir, technique, bits, group, ignore)
    return _predict(job, out, _open_journal(job, out))


def apply(
    model_dir: str | Path,
    out_dir: str | Path,
    *,
    technique: str = "rtn",
    bits: int = 4,
    group: int = 128,
    ignore: Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Quantize the linear layers of the checkpoint in ``model_dir`` and write one that engines load to ``out_dir``.

    Embeddings, norms, the output head, routers, vision and audio towers stay as they are. Called again after an
    interruption it goes on where it stopped and ends with the same bytes.

    Args:
        model_dir: a Hugging Face checkpoint of safetensors in 16 or 32 bits.
        out_dir: a folder that does not exist yet, in one that does.
        technique: a key of ``SOLVERS``.
        bits: 2, 4 or 8 per weight.
        group: weights per scale, 32, 64 or 128, or -1 for one scale per output channel. With tensor parallelism
            the group must divide each device's share of the inputs too.
        ignore: further modules to keep, by full name or as ``re:`` and an expression matched from the name's start.
        progress: called after each tensor.

    Raises:
        UsageError: the arguments do not fit the checkpoint or the machine; nothing has been written.
        NearpeakError: a file is damaged, a weight is not finite, or a written tensor does not read back.
    """
    started, held, peak = time.perf_counter(), resident_memory(), peak_memory()
    job, out = _prepare(model_dir, out_dir, technique, bits, group, ignore)
    journal = _open_journal(job, out)
    predicted = _predict(job, out, journal)
    predicted.refuse_unless_fits()
    resumed = len(journal.finished)
    _begin(out, journal)
    try:
        _write_shards(job, _files(out), journal, progress)
        written = _finish(job, _files(out), journal, out)
    except OSError as error:
        raise NearpeakError(f"{error}; {len(journal.finished)} shards are done, call again to go on") from error
    return Report(
        out=out,
        technique=technique,
        layers=_layers(job, journal),
        kept=_kept(job),
        left_out=tuple(map(str, job.source.left_out)),
        estimate=predicted,
        written=written,
        peak_memory=_grown(held, peak),
        seconds=time.perf_counter() - started,
        resumed=resumed,
    )


def _prepare(
    model_dir: str | Path, out_dir: str | Path, technique: str, bits: int, group: int, ignore: Sequence[str]
) -> tuple[Job, Path]:
    if technique not in SOLVERS:
        raise UnknownName("technique", technique, SOLVERS)
    out = Path(out_dir).absolute()
    if out.exists():
        raise UsageError(f"{out} exists; choose another out_dir or remove it")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder; create it first or choose another out_dir")
    if out.resolve().is_relative_to(Path(model_dir).resolve()):
        raise UsageError(f"{out} lies inside the source {model_dir}; choose an out_dir outside of it")
    return prepare(model_dir, technique, bits, group, ignore), out


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _files(out: Path) -> Path:
    return _partial(out) / "checkpoint"


def _open_journal(job: Job, out: Path) -> Journal:
    return open_journal(_partial(out) / "journal.json", _files(out), job.parameters())


def _predict(job: Job, out: Path, journal: Journal) -> Estimate:
    return predict(job, out, {shard: facts["bytes"] for shard, facts in journal.finished.items()})


def _begin(out: Path, journal: Journal) -> None:
    try:
        _files(out).mkdir(parents=True, exist_ok=True)
        journal.write()
    except OSError as error:
        raise UsageError(f"{out.parent} cannot be written to: {error}; choose another out_dir") from error


def _write_shards(job: Job, files: Path, journal: Journal, progress: Callable[[Progress], None] | None) -> None:
    total = sum(tensor.bytes for _, tensor, _ in job.source.tensors())
    done = 0
    for shard in job.source.shards:
        if shard.name in journal.finished:
            done += sum(tensor.bytes for tensor in shard.tensors.values())
            continue
        meant: dict[str, str] = {}
        errors: dict[str, float] = {}
        path = files / shard.name
        for name, digest, error in _write_shard(job, shard, path):
            meant[name] = digest
            if error is not None:
                errors[name.removesuffix(".weight")] = error
            done += shard.tensors[name].bytes
            if progress is not None:
                progress(Progress(done, total, name))
        _verify(job, shard, path, meant)
        journal.finish(shard.name, path.stat().st_size, errors)


def _write_shard(job: Job, shard: Shard, path: Path) -> Iterator[tuple[str, str, float | None]]:
    """Write one shard, tensor by tensor; yield each one's name, digest and, if it was quantized, relative error."""
    solve = SOLVERS[job.technique]
    with writing(path, job.contents(shard), job.metadata(shard)) as put:
        for name, tensor in sorted(shard.tensors.items(), key=lambda item: item[1].start):
            if name not in job.linears:
                digest = hashlib.sha256()
                put(name, _hashed(read_chunks(shard.path, tensor), digest.update))
                yield name, digest.hexdigest(), None
                continue
            weight = read_tensor(shard.path, tensor)
            if not is_finite(weight):
                raise NearpeakError(f"{name} in {shard.path} has NaN or infinite weights; the checkpoint is damaged")
            codes, scale = solve(weight, job.scheme)
            error = relative_error(weight, codes, scale)
            module = name.removesuffix(".weight")
            put(f"{module}.weight_packed", pack(codes, job.scheme.bits))
            put(f"{module}.weight_scale", scale)
            put(f"{module}.weight_shape", torch.tensor(weight.shape, dtype=torch.int64))
            yield name, _digest(codes, scale), error


def _hashed(chunks: Iterator[bytes], update: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        update(chunk)
        yield chunk


def _digest(codes: torch.Tensor, scale: torch.Tensor) -> str:
    """SHA-256 of the weights that codes and scales stand for."""
    digest = hashlib.sha256()
    for rows in row_blocks(codes.shape):
        digest.update(raw_bytes(dequantize(codes[rows], scale[rows])))
    return digest.hexdigest()


def _verify(job: Job, shard: Shard, path: Path, meant: dict[str, str]) -> None:
    """Read the written shard back; every tensor must stand for exactly what was meant."""
    tensors, _, _ = read_header(path)
    for name, expected in meant.items():
        if name in job.linears:
            found = _digest(*read_linear(path, tensors, name.removesuffix(".weight"), job.scheme.bits))
        else:
            digest = hashlib.sha256()
            for chunk in read_chunks(path, tensors[name]):
                digest.update(chunk)
            found = digest.hexdigest()
        if found != expected:
            path.unlink()
            raise NearpeakError(f"{name} in {path} does not read back as it was written; check the disk, then go on")


def _finish(job: Job, files: Path, journal: Journal, out: Path) -> int:
    """Write what lies beside the shards and rename the folder to ``out``; return the bytes, report excepted."""
    for relative in job.source.companions:
        (files / relative).parent.mkdir(parents=True, exist_ok=True)
        with (job.source.folder / relative).open("rb") as original, replacing(files / relative) as copy:
            shutil.copyfileobj(original, copy)
    for name, document in job.documents().items():
        write_json(files / name, document)
    (files / REPORT).unlink(missing_ok=True)
    written = sum(path.stat().st_size for path in files.rglob("*") if path.is_file())
    report = {
        "nearpeak": __version__,
        "technique": job.technique,
        "layers": [asdict(layer) for layer in _layers(job, journal)],
        "kept": [asdict(kept) for kept in _kept(job)],
        "left_out": [str(path) for path in job.source.left_out],
        "read": sum(shard.path.stat().st_size for shard in job.source.shards),
        "written": written,
    }
    write_json(files / REPORT, report)
    files.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(_partial(out))
    return written


def _layers(job: Job, journal: Journal) -> tuple[Layer, ...]:
    errors = {name: error for facts in journal.finished.values() for name, error in facts["errors"].items()}
    return tuple(Layer(name, job.scheme.bits, job.scheme.group, errors[name]) for name in job.selection.linears)


def _kept(job: Job) -> tuple[Kept, ...]:
    return tuple(Kept(name, reason) for name, reason in job.selection.kept.items())


def _grown(held: int | None, peak: int | None) -> int | None:
    """Most memory held beyond ``held`` since the peak was ``peak``; None if the peak lies before that."""
    now = peak_memory()
    return now - held if held is not None and peak is not None and now is not None and now > peak else None
