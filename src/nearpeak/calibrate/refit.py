"""Fit a calibration again to tables of measurements, and say what changed against the one it replaces.

What the tables measured replaces what was there: an operator's constants of the same device, engine and format, an
engine's, a training engine's. What they did not measure stays.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from nearpeak import __version__
from nearpeak.calibrate import operators, score_power, score_serving, score_training
from nearpeak.calibrate.board import NEW, SEEN, Line, errors, lines
from nearpeak.calibrate.cells import devices
from nearpeak.calibrate.checks import checked
from nearpeak.calibrate.samples import Sample, Table, concatenated, site_numbers
from nearpeak.calibrate.score_training import DEVICE, ENGINE
from nearpeak.calibrate.scoring import KINDS
from nearpeak.calibrate.store import About, Source, about, code_digest, digest, keep, kept, packed
from nearpeak.calibrate.tables import File, by_operator
from nearpeak.cost.calibration import Calibration, Entry, OperatorCalibration, decode, stored
from nearpeak.cost.stored import folder_of, using
from nearpeak.cost.tables import predict_operators
from nearpeak.errors import UsageError

Array = NDArray[np.float64]


class Change(msgspec.Struct, frozen=True):
    """What a refit changed for one operator on one device under one engine, in one format.

    Attributes:
        change: added, changed, same or removed. rows: measured now.
        before: median absolute percentage error of the calibration that is replaced, on these rows; None without an
            answer. before_seen: whether the rows were in its own fit, which flatters it.
        after: the new one's, with every row's site left out of its fit; None where there were too few sites.
    """

    op: str
    gpu: str
    engine: str
    format: str
    change: str
    rows: int
    before: float | None
    before_seen: bool
    after: float | None


class Fitted(msgspec.Struct, frozen=True):
    """One table's operators, or the ``files`` of what another kind of table fits: what an interrupted refit keeps."""

    operators: dict[str, OperatorCalibration]
    changes: tuple[Change, ...]
    sources: tuple[Source, ...]
    notes: tuple[str, ...]
    files: dict[str, bytes] = {}


@dataclass(frozen=True)
class Refit:
    """A new calibration before it is saved: its data files, what is known of it, and what changed."""

    files: dict[str, bytes]
    about: About
    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def refit(
    files: Sequence[File],
    name: str,
    version: int,
    base: str = "",
    only: Sequence[str] = (),
    work: Path | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Refit:
    """Fit what the files measured.

    Args:
        files: tables, as ``tables.find`` gives them. name, version: of the new calibration.
        base: the calibration that it replaces, as ``stored.folder_of`` reads it. only: operators' tables to fit.
        work: folder where finished operators are kept; a second run takes them from there. jobs: processes.
        progress: called with (done, in all) after each operator.

    Raises:
        UsageError: a table is refused (see ``checks``), or there is nothing to fit.
    """
    tasks = by_task(files, only)
    folder = folder_of(base)
    old, known = stored(folder), about(folder)
    found: dict[str, Fitted] = {}
    progress(0, len(tasks))
    for op, fitted in _fit_all(tasks, base, work, jobs):
        found[op] = fitted
        progress(len(found), len(tasks))
    parts = [found[op] for op in tasks]
    merged = {**old.operators}
    for part in parts:
        for op, new in part.operators.items():
            merged[op] = merge(old.operators.get(op), new)
    sources = tuple(s for part in parts for s in part.sources)
    replaced = {(s.kind, s.op, s.gpu) for s in sources}
    described = About(
        name, version, __version__, known.title, (*(s for s in known.sources if _of(s) not in replaced), *sources)
    )
    title = f"{', '.join(sorted({f.name for task in tasks.values() for f in task}))}; the rest from {known.title}"
    texts = {"calibration.json": encoded(Calibration(title, merged))}
    for part in parts:
        texts |= part.files
    changes = tuple(c for part in parts for c in part.changes)
    notes = tuple(n for part in parts for n in part.notes)
    return Refit(texts, described, changes, notes)


def _of(source: Source) -> tuple[str, str, str]:
    return source.kind, source.op, source.gpu


def encoded(calibration: Calibration) -> bytes:
    """A calibration as its file has it, a line for each entry; checked by reading it back."""
    text = msgspec.json.encode(calibration).replace(b'],["', b'],\n["') + b"\n"
    decode(text)
    return text


def merge(old: OperatorCalibration | None, new: OperatorCalibration) -> OperatorCalibration:
    """The new entries, and the old ones of what was not measured now.

    The intervals of transfers are the new one's where it rests on at least as many devices as the old one's.
    """
    if old is None or (old.axes, old.tables) != (new.axes, new.tables):
        return new
    measured = _entries(new).keys()
    others = tuple(e for e in old.entries if _key(e) not in measured)
    wide = new if len({e.gpu for e in new.entries}) >= len({e.gpu for e in old.entries}) else old
    return msgspec.structs.replace(wide, entries=(*others, *new.entries))


def _key(e: Entry) -> tuple[str, str, str]:
    """What an entry is for: device, engine (kernels with it), format."""
    return e.gpu, e.engine.partition("/")[0], e.variant


def _fit_all(tasks: dict[str, list[File]], base: str, work: Path | None, jobs: int) -> Iterator[tuple[str, Fitted]]:
    code = code_digest() if work is not None else ""
    places = {
        op: None if work is None else work / f"{op}-{_digest(files, base, code)}.json" for op, files in tasks.items()
    }
    left = []
    for op, place in places.items():
        if place is not None and (done := kept(place, Fitted)) is not None:
            yield op, done
        else:
            left.append(op)
    if jobs > 1 and len(left) > 1:
        with ProcessPoolExecutor(min(jobs, len(left))) as pool:
            running = {pool.submit(fit_task, op, tasks[op], base, places[op]): op for op in left}
            try:
                for done_task in as_completed(running):
                    yield running[done_task], done_task.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    else:
        for op in left:
            yield op, fit_task(op, tasks[op], base, places[op])


def _digest(files: Sequence[File], base: str, code: str) -> str:
    return digest(*(f.path.read_bytes() for f in files), stored_bytes(base), code.encode())


def stored_bytes(base: str) -> bytes:
    """What identifies the calibration to be replaced."""
    return msgspec.json.encode(about(folder_of(base)))


def by_task(files: Sequence[File], only: Sequence[str]) -> dict[str, list[File]]:
    """Files that are fitted together: those of an operator, and those of each other kind.

    Raises:
        UsageError: no table is of something in ``only``.
    """
    found = by_operator(files) | {kind: [f for f in files if f.kind == kind] for kind in OTHERS}
    tasks = {name: held for name, held in found.items() if held}
    if absent := [name for name in only if name not in tasks]:
        raise UsageError(f"nothing to fit {', '.join(absent)} to: the tables are of {', '.join(tasks)}")
    return {name: held for name, held in tasks.items() if not only or name in only}


def fit_task(name: str, files: Sequence[File], base: str, place: Path | None) -> Fitted:
    """Fit what the files of one task hold; leave the result at ``place``."""
    with using(base):
        result = _fit_other(name, files) if name in OTHERS else fit_table(name, files, base)
    if place is not None:
        keep(place, result)
    return result


def _fit_other(kind: str, files: Sequence[File]) -> Fitted:
    if len(files) > 1:
        raise UsageError(f"{len(files)} tables of {kind}: {', '.join(f.name for f in files)}; give one, of all rows")
    table = files[0].table()
    fit, run = OTHERS[kind]
    if wrong := errors(KINDS[kind](files, ())[0]):
        raise UsageError(
            f"{files[0].name}: {next(iter(wrong))}; nothing is fitted to such rows: correct or remove them"
        )
    scored, notes = KINDS[kind](files, ("site",))
    found: dict[tuple[str, str, str], dict[bool, Line]] = {}
    for line in lines(scored, ("operator", "gpu", "engine")):
        key = (line.group["operator"], line.group["gpu"], line.group["engine"])
        found.setdefault(key, {})[line.fit in (SEEN, NEW)] = line
    changes = [
        Change(
            operator,
            one,
            engine,
            "",
            "changed",
            max(x.rows for x in both.values()),
            _of_line(both, True),
            any(x.fit == SEEN for x in both.values()),
            _of_line(both, False),
        )
        for (operator, one, engine), both in found.items()
    ]
    gpu, keys, identity = devices(table, DEVICE), site_numbers(table, run), files[0].path.read_bytes()
    sources = tuple(
        Source(kind, "", str(one), int(np.sum(gpu == one)), digest(identity), packed(keys[gpu == one]))
        for one in np.unique(gpu.astype(str))
    )
    return Fitted({}, tuple(changes), sources, tuple(notes), fit(table))


def _of_line(both: Mapping[bool, Line], before: bool) -> float | None:
    return round(both[before].median, 2) if before in both and both[before].answered else None


def _engines(table: Table) -> dict[str, bytes]:
    from nearpeak.calibrate.engines import fit_engines

    return {"engines.json": _indented(fit_engines(table))}


def _training(table: Table) -> dict[str, bytes]:
    from nearpeak.calibrate.training import fit_training
    from nearpeak.cost.training import training_engines

    return {"training.json": _indented({**training_engines(), ENGINE: fit_training(table)})}


def _power(table: Table) -> dict[str, bytes]:
    from nearpeak.calibrate.power import fit_power

    model, forests = fit_power(table)
    return {"power.json": _indented(model), "power_samples.json": msgspec.json.encode(forests) + b"\n"}


def _indented(value: Any) -> bytes:  # noqa: ANN401 - anything msgspec encodes
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


OTHERS: dict[str, tuple[Callable[[Table], dict[str, bytes]], tuple[str, ...]]] = {
    "serving": (_engines, score_serving.RUN),
    "training": (_training, score_training.RUN),
    "power": (_power, score_power.RUN),
}
"""Kinds of tables but for operators: the files that a fit makes, and the columns that make a row the same."""


def fit_table(op: str, files: Sequence[File], base: str) -> Fitted:
    """Fit the operators of one table: ``linear_attention`` holds several."""
    folder = folder_of(base)
    old, known = stored(folder), about(folder)
    parts: dict[str, list[Sample]] = {}
    before: dict[str, list[Array]] = {}
    seen: dict[str, list[NDArray[np.bool_]]] = {}
    notes: list[str] = []
    sources: dict[str, list[tuple[Sample, bytes]]] = {}
    for file in files:
        table = file.table()
        accepted = checked(table, op, file.name)
        notes += accepted.notes
        answers = predict_operators(table, op, old)["seconds"]
        identity = file.path.read_bytes()
        for name, sample in accepted.samples.items():
            parts.setdefault(name, []).append(sample)
            before.setdefault(name, []).append(np.log(answers[sample.row] / sample.seconds))
            for gpu in np.unique(sample.gpu):
                mine = sample.where(sample.gpu == gpu)
                sources.setdefault(str(gpu), []).append((mine, identity))
            seen.setdefault(name, []).append(known.seen("operators", op, sample.gpu, sample.site))
    fitted: dict[str, OperatorCalibration] = {}
    changes: list[Change] = []
    for name, samples in parts.items():
        whole = concatenated(samples)
        fitted[name], scores = operators.calibrate(name, whole)
        told = np.concatenate(before[name]), np.concatenate(seen[name]), scores.site
        changes += _changes(name, whole, old.operators.get(name), fitted[name], *told)
    return Fitted(fitted, tuple(changes), tuple(_source(op, gpu, held) for gpu, held in sources.items()), tuple(notes))


def _source(op: str, gpu: str, held: Sequence[tuple[Sample, bytes]]) -> Source:
    sites = np.concatenate([s.site for s, _ in held])
    files = dict.fromkeys(identity for _, identity in held)
    return Source("operators", op, gpu, int(sites.size), digest(*files), packed(sites))


def _changes(
    op: str,
    s: Sample,
    old: OperatorCalibration | None,
    new: OperatorCalibration,
    before: Array,
    seen: NDArray[np.bool_],
    after: Array,
) -> list[Change]:
    """Changes of an operator, by device, engine and format. ``before``, ``after``: logs of predicted over measured."""
    then, now = _entries(old), _entries(merge(old, new))
    found = []
    for key in sorted({*zip(s.gpu, s.engine, s.variant, strict=True)} | (then.keys() - now.keys())):
        gpu, engine, variant = key
        rows = (s.gpu == gpu) & (s.engine == engine) & (s.variant == variant)
        kind = "added" if key not in then else "changed" if then[key] != now.get(key) else "same"
        if key not in now:
            kind = "removed" if key in then else "too few rows"
        found.append(
            Change(
                op,
                gpu,
                engine,
                variant,
                kind,
                int(rows.sum()),
                _error(before[rows]),
                bool(seen[rows].any()),
                _error(after[rows]),
            )
        )
    return found


def _entries(operator: OperatorCalibration | None) -> dict[tuple[str, str, str], list[Entry]]:
    """Entries by device, engine and format; kernels with their engine."""
    found: dict[tuple[str, str, str], list[Entry]] = {}
    for e in operator.entries if operator else ():
        found.setdefault(_key(e), []).append(e)
    return found


def _error(log_ratio: Array) -> float | None:
    """Median absolute percentage error; None where nothing is predicted."""
    known = log_ratio[np.isfinite(log_ratio)]
    return round(float(100 * np.median(np.abs(np.expm1(known)))), 2) if known.size else None
