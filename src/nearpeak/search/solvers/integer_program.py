"""Mixed integer linear programs as arrays, solved by HiGHS (Huangfu and Hall, Math. Prog. Comp. 10, 2018).

    minimise  c'x + offset    where  row_lower <= A x <= row_upper,  lower <= x <= upper,  x_j whole for j in integer

A program is data: what narrows it (fixed variables, a further row, another objective) is a new program that shares
its arrays. HiGHS comes with the extra ``nearpeak[search]``.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from nearpeak.errors import NearpeakError, UsageError

if TYPE_CHECKING:
    import highspy

Array = NDArray[np.float64]

FEASIBLE: Final = 1e-6
"""By how much a row or a bound may be missed, in its own units or relative to what it bounds, whichever is more."""

_STOPPED = {
    "kOptimal": "optimal",
    "kInfeasible": "infeasible",
    "kUnbounded": "unbounded",
    "kUnboundedOrInfeasible": "unbounded or infeasible",
    "kTimeLimit": "time limit",
    "kSolutionLimit": "solution limit",  # of nodes too
    "kModelEmpty": "optimal",
}


@dataclass(frozen=True, eq=False)
class IntegerProgram:
    """A mixed integer linear program; infinite bounds are allowed.

    Attributes:
        cost, lower, upper: ``[n]``. integer: ``[n]``, whether a variable is whole.
        rows: sparse ``[m, n]``. row_lower, row_upper: ``[m]``.
        offset: added to every value.

    Raises:
        UsageError: shapes do not fit, a figure is no number, or a lower bound is above the upper one.
    """

    cost: Array
    rows: sparse.csr_array
    row_lower: Array
    row_upper: Array
    lower: Array
    upper: Array
    integer: NDArray[np.bool_]
    offset: float = 0.0

    def __post_init__(self) -> None:
        m, n = self.rows.shape
        for name, size in (("cost", n), ("lower", n), ("upper", n), ("integer", n), ("row_lower", m), ("row_upper", m)):
            array = getattr(self, name)
            if array.shape != (size,):
                raise UsageError(f"{name} must hold {size} figures for {m} rows and {n} variables, not {array.shape}")
            if np.isnan(array).any():
                raise UsageError(f"{name} holds a NaN at {int(np.isnan(array).argmax())}; infinite bounds are allowed")
        if not (np.isfinite(self.cost).all() and np.isfinite(self.rows.data).all()):
            raise UsageError("costs and coefficients must be finite")
        for low, high, what in ((self.lower, self.upper, "variable"), (self.row_lower, self.row_upper, "row")):
            if (low > high).any():
                worst = int((low > high).argmax())
                raise UsageError(f"{what} {worst} must be at least {low[worst]:g} and at most {high[worst]:g}")

    @property
    def binary(self) -> NDArray[np.bool_]:
        """Which variables are 0 or 1, ``[n]``."""
        return self.integer & (self.lower >= 0) & (self.upper <= 1)

    def value(self, x: ArrayLike) -> float:
        """The objective at ``x [n]``."""
        return float(self.cost @ np.asarray(x, float)) + self.offset

    def violation(self, x: ArrayLike) -> float:
        """By how much ``x [n]`` misses rows, bounds and integrality at worst, as ``FEASIBLE`` measures it."""
        x = np.asarray(x, float)
        activity = self.rows @ x
        whole = np.abs(x - np.rint(x))[self.integer]
        return max(_outside(activity, self.row_lower, self.row_upper), _outside(x, self.lower, self.upper),
                   float(whole.max(initial=0.0)))  # fmt: skip

    def with_row(self, coefficients: Array, lower: float, upper: float) -> "IntegerProgram":
        """The same program with one more row, ``coefficients [n]``."""
        return replace(
            self,
            rows=sparse.vstack([self.rows, sparse.csr_array(coefficients[None])], format="csr"),
            row_lower=np.append(self.row_lower, lower),
            row_upper=np.append(self.row_upper, upper),
        )

    def relaxed(self) -> "IntegerProgram":
        """The linear program: nothing need be whole."""
        return replace(self, integer=np.zeros_like(self.integer))


def _outside(values: Array, lower: Array, upper: Array) -> float:
    bound = np.where(values < lower, lower, upper)
    missed = np.maximum(np.maximum(lower - values, values - upper), 0)
    return float(np.max(missed / np.maximum(1, np.abs(np.where(missed > 0, bound, 1))), initial=0.0))


@dataclass(frozen=True)
class Solution:
    """What a solver returned.

    Attributes:
        x: ``[n]``, or None where nothing feasible was found. value: at ``x``, infinite without one.
        bound: no solution is below it. status: why it stopped: "optimal", "infeasible", "time limit", ...
    """

    x: Array | None
    value: float
    bound: float
    status: str


def solve(
    program: IntegerProgram,
    *,
    time_limit: float = np.inf,
    nodes: int | None = None,
    solutions: int | None = None,
    start: Array | None = None,
    gap: float = 1e-6,
    threads: int = 1,
    seed: int = 0,
) -> Solution:
    """Solve by HiGHS' branch and bound (its simplex where nothing is whole).

    Args:
        program: what to solve. time_limit: seconds. nodes: of the tree. solutions: improving ones before it stops.
        start: a feasible ``x [n]`` to begin from. gap: relative distance of value and bound at which it is done.
        threads: of HiGHS. seed: of its random choices; with one seed and no time limit it repeats itself.

    Raises:
        NearpeakError: HiGHS is not installed, or refuses the program.
    """
    h = _highs(threads, seed)
    for option, limit in (
        ("time_limit", max(float(time_limit), 0.0)),
        ("mip_rel_gap", gap),
        ("mip_max_nodes", nodes),
        ("mip_max_improving_sols", solutions),
    ):
        if limit is not None:
            h.setOptionValue(option, limit)
    _require(h.passModel(_lp(program)), "refuses the program")
    if start is not None:
        columns = np.arange(start.size, dtype=np.int32)
        _require(h.setSolution(start.size, columns, np.asarray(start, float)), "refuses the start")
    _require(h.run(), "failed")
    status = h.getModelStatus().name
    stopped = _STOPPED.get(status, status.removeprefix("k"))
    info = h.getInfo()
    # 2 is HiGHS' word for a feasible point.
    x = np.array(h.getSolution().col_value, float) if info.primal_solution_status == 2 else None
    mip = bool(program.integer.any())
    if x is None:
        return Solution(None, np.inf, float(info.mip_dual_bound) if mip else -np.inf, stopped)
    whole = np.where(program.integer, np.rint(x), x)
    x = whole if program.violation(whole) <= FEASIBLE else x
    value = program.value(x)
    bound = float(info.mip_dual_bound) if mip else value if stopped == "optimal" else -np.inf
    return Solution(x, value, min(bound, value), stopped)


def read(path: str | Path) -> IntegerProgram:
    """A program from an MPS or LP file (``.gz`` too). One that maximises is read with its objective negated.

    Raises:
        UsageError: the file does not exist or holds no program that HiGHS can read.
    """
    if not Path(path).is_file():
        raise UsageError(f"{str(path)!r} is no file; give one in the MPS or LP format")
    import highspy

    h = _highs(1, 0)
    if h.readModel(str(path)) == highspy.HighsStatus.kError:
        raise UsageError(f"HiGHS cannot read {str(path)!r}; it must be in the MPS or LP format")
    lp = h.getLp()
    matrix, shape = lp.a_matrix_, (lp.num_row_, lp.num_col_)
    kind = sparse.csc_array if matrix.format_ == highspy.MatrixFormat.kColwise else sparse.csr_array
    rows = kind((np.array(matrix.value_), np.array(matrix.index_), np.array(matrix.start_)), shape=shape)
    sign = -1.0 if lp.sense_ == highspy.ObjSense.kMaximize else 1.0
    whole = {highspy.HighsVarType.kInteger: True, highspy.HighsVarType.kContinuous: False}
    kinds = list(lp.integrality_) or [highspy.HighsVarType.kContinuous] * lp.num_col_
    if set(kinds) - whole.keys():
        raise UsageError(f"{str(path)!r} has semi-continuous variables; write them with a binary and two rows")
    return IntegerProgram(
        cost=sign * np.array(lp.col_cost_, float),
        rows=sparse.csr_array(rows),
        row_lower=np.array(lp.row_lower_, float),
        row_upper=np.array(lp.row_upper_, float),
        lower=np.array(lp.col_lower_, float),
        upper=np.array(lp.col_upper_, float),
        integer=np.array([whole[kind] for kind in kinds], bool),
        offset=sign * lp.offset_,
    )


def _highs(threads: int, seed: int) -> "highspy.Highs":
    try:
        import highspy
    except ImportError:
        raise NearpeakError("integer programs need HiGHS: pip install 'nearpeak[search]'") from None
    h = highspy.Highs()  # type: ignore[no-untyped-call]
    h.silent()
    # Threads are HiGHS' own global pool, which keeps the size that its first user gave it.
    highspy.Highs.resetGlobalScheduler(True)
    h.setOptionValue("threads", threads)
    h.setOptionValue("random_seed", seed)
    return h


def _lp(program: IntegerProgram) -> "highspy.HighsLp":
    import highspy

    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = program.rows.shape
    lp.col_cost_, lp.offset_ = program.cost, program.offset
    lp.col_lower_, lp.col_upper_ = program.lower, program.upper
    lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = program.rows.indptr, program.rows.indices
    lp.a_matrix_.value_ = program.rows.data
    if program.integer.any():
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[whole] for whole in program.integer.tolist()]
    return lp


def _require(status: "highspy.HighsStatus", what: str) -> None:
    if status.name == "kError":
        raise NearpeakError(f"HiGHS {what}; check it for coefficients of very different sizes")
