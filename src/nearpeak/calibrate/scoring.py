"""Tables of measurements, scored: predicted as a user would, and again by fits that left the rows out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np

from nearpeak.calibrate.board import SEEN, Scored, joined
from nearpeak.calibrate.left_out import By
from nearpeak.calibrate.score_operators import operators
from nearpeak.calibrate.score_power import power
from nearpeak.calibrate.score_serving import serving
from nearpeak.calibrate.score_training import training
from nearpeak.calibrate.tables import File

KINDS = {"operators": operators, "power": power, "serving": serving, "training": training}


def score(
    files: Sequence[File],
    leave: Sequence[By] | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Scored, tuple[str, ...]]:
    """Score every row of the files, and again with what ``leave`` names left out of the fit.

    Args:
        files: tables, as ``tables.find`` gives them.
        leave: site, gpu, model. None: rows that are in the calibration's own fit, with their sites left out. Empty:
            nothing is fitted; rows of the calibration's own fit have no answer then.
        jobs: processes. progress: called with (done, in all) after each table.

    Returns:
        The rows, and notes on what could not be scored.
    """
    tasks: dict[str, list[File]] = {}
    for file in files:
        tasks.setdefault(file.op or str(file.path), []).append(file)
    parts: dict[str, Scored] = {}
    notes: list[str] = []
    progress(0, len(tasks))
    if jobs > 1 and len(tasks) > 1:
        with ProcessPoolExecutor(min(jobs, len(tasks))) as pool:
            running = {pool.submit(_score, part, leave): name for name, part in tasks.items()}
            for done in as_completed(running):
                parts[running[done]], told = done.result()
                notes += told
                progress(len(parts), len(tasks))
    else:
        for name, part in tasks.items():
            parts[name], told = _score(part, leave)
            notes += told
            progress(len(parts), len(tasks))
    return joined([parts[name] for name in tasks]), tuple(sorted(notes))


def _score(files: Sequence[File], leave: Sequence[By] | None) -> tuple[Scored, list[str]]:
    scored, notes = KINDS[files[0].kind](files, leave)
    return (scored if leave is None or leave else _withheld(scored)), notes


def _withheld(scored: Scored) -> Scored:
    """Without answers for rows of the calibration's own fit: an error in sample says nothing alone."""
    seen = scored.fit == SEEN
    error = np.where(seen, "in the calibration's own fit; score it with --leave-out site", scored.error)
    figures = {n: np.where(seen, np.nan, getattr(scored, n)) for n in ("predicted", "low", "high")}
    return Scored(**{**vars(scored), **figures, "error": error})
