"""Compile the C programs of ``c_programs`` under random sets of gcc's flags and keep the sizes of what comes out.

Usage: python tools/compile_flag_sets.py FILE.npz [FLAG_SETS] [VARIANTS]

FILE is a table for ``nearpeak search coreset``: ``costs`` ``[programs, flag sets]`` (bytes of code and constants; -1:
did not compile), ``task`` and ``configuration`` (names of programs, as ``family-number``, and flags), and ``features``
``[programs, features]``: how often each kind of instruction occurs after ``gcc -O0``, one cheap compilation. The first
two flag sets are plain ``-Os`` and ``-Oz``. No flag here changes what a program means. FILE is written every ten flag
sets; what it holds already is not compiled again.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from c_programs import programs

LEVELS, SHARES = ("-Os", "-Oz", "-O2", "-O1"), (0.5, 0.2, 0.15, 0.15)
NAMES = """
align-functions align-jumps align-labels align-loops branch-count-reg caller-saves code-hoisting
combine-stack-adjustments compare-elim cprop-registers crossjumping cse-follow-jumps defer-pop dce dse early-inlining
expensive-optimizations forward-propagate gcse gcse-after-reload gcse-las gcse-lm gcse-sm guess-branch-probability
hoist-adjacent-loads if-conversion if-conversion2 inline-functions inline-functions-called-once inline-small-functions
ipa-cp ipa-icf ipa-modref ipa-pure-const ipa-ra ipa-sra ira-hoist-pressure ira-loop-pressure ira-share-save-slots
ivopts jump-tables live-range-shrinkage lra-remat modulo-sched move-loop-invariants omit-frame-pointer
partial-inlining peel-loops peephole2 predictive-commoning ree rename-registers reorder-blocks
reorder-blocks-and-partition reorder-functions rerun-cse-after-loop schedule-insns schedule-insns2 sched-pressure
section-anchors shrink-wrap split-ivs-in-unroller split-loops split-wide-types ssa-phiopt store-merging thread-jumps
tree-bit-ccp tree-builtin-call-dce tree-ccp tree-ch tree-coalesce-vars tree-copy-prop tree-cselim tree-dce
tree-dominator-opts tree-dse tree-forwprop tree-fre tree-loop-distribute-patterns tree-loop-distribution
tree-loop-if-convert tree-loop-im tree-loop-ivcanon tree-loop-optimize tree-partial-pre tree-pre tree-pta tree-reassoc
tree-scev-cprop tree-sink tree-slp-vectorize tree-slsr tree-sra tree-switch-conversion tree-tail-merge tree-ter
tree-vectorize tree-vrp unroll-loops unswitch-loops unwind-tables
"""
SWITCHES = NAMES.split()
KINDS = {
    "move": ("mov",), "address": ("lea",), "add": ("add", "sub", "inc", "dec", "neg"), "multiply": ("imul", "mul"),
    "divide": ("idiv", "div"), "extend": ("clt", "cwt", "cqt", "cltq", "movz", "movs"),
    "logic": ("and", "or", "xor", "not"), "shift": ("sal", "sar", "shl", "shr", "rol", "ror"),
    "compare": ("cmp", "test"), "set": ("set",), "branch": ("j",), "call": ("call",), "stack": ("push", "pop"),
    "return": ("ret",), "float": ("adds", "subs", "muls", "divs", "sqrts", "comis", "ucomis", "pxor", "andp", "xorp"),
    "convert": ("cvt",), "float_move": ("movss", "movsd", "movap", "movd", "movq\t%xmm"),
}  # fmt: skip


def flag_sets(count: int, seed: int = 0) -> list[list[str]]:
    """``-Os``, ``-Oz``, then random ones: a level and up to twelve switches on or off."""
    rng = np.random.default_rng(seed)
    found = [["-Os"], ["-Oz"]]
    while len(found) < count:
        switches = rng.choice(SWITCHES, size=int(rng.integers(1, 13)), replace=False)
        found.append([str(rng.choice(LEVELS, p=SHARES)), *(f"-f{rng.choice(['', 'no-'])}{s}" for s in switches)])
    return found


def sizes(flags: list[str], names: list[str], folder: Path) -> NDArray[np.int64]:
    """Bytes of code and constants of each program under ``flags``; -1 where it did not compile."""
    for name in names:
        (folder / f"{name}.o").unlink(missing_ok=True)
    subprocess.run(
        ["gcc", "-c", "-w", *flags, *(f"{n}.c" for n in names)], cwd=folder, capture_output=True, check=False
    )
    made = [n for n in names if (folder / f"{n}.o").exists()]
    told = subprocess.run(
        ["size", "-A", *(f"{n}.o" for n in made)], cwd=folder, capture_output=True, check=True, text=True
    )
    found, name = dict.fromkeys(names, -1), ""
    for line in told.stdout.splitlines():
        if line.endswith(":"):
            name = line.split(".o")[0]
            found[name] = 0
        elif line.startswith((".text", ".rodata")):
            found[name] += int(line.split()[1])
    return np.array([found[n] for n in names])


def features(names: list[str], folder: Path) -> NDArray[np.float64]:
    """Counts ``[programs, kinds + 2]`` of instructions, labels and functions after ``gcc -O0 -S``."""
    subprocess.run(["gcc", "-S", "-O0", "-w", *(f"{n}.c" for n in names)], cwd=folder, check=True)
    rows = []
    for name in names:
        lines = (folder / f"{name}.s").read_text().splitlines()
        code = [line.strip() for line in lines if line.startswith("\t") and not line.startswith("\t.")]
        row = [sum(line.startswith(starts) for line in code) for starts in KINDS.values()]
        rows.append([*row, sum(line.startswith(".L") for line in lines), sum("@function" in line for line in lines)])
    return np.array(rows, float)


def main(path: str, count: int = 500, variants: int = 3) -> None:
    """Compile what ``path`` lacks and write it."""
    texts, sets = programs(variants, seed=0), flag_sets(count)
    names, lines = list(texts), [" ".join(flags) for flags in sets]
    table = np.zeros((len(names), 0), np.int64)
    if Path(path).exists():
        with np.load(path) as held:
            done = held["configuration"].tolist()
            if held["task"].tolist() != names or done != lines[: len(done)]:
                sys.exit(f"{path} is of other programs or flag sets: give another name")
            table = held["costs"].astype(np.int64)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for program, text in texts.items():
            (folder / f"{program}.c").write_text(text)
        seen = features(names, folder)
        while (done_sets := table.shape[1]) < count:
            made = [sizes(flags, names, folder) for flags in sets[done_sets : done_sets + 10]]
            table = np.column_stack([table, *made])
            np.savez_compressed(
                path, costs=table.astype(np.int32), task=np.array(names), features=seen,
                configuration=np.array(lines[: table.shape[1]]),
            )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], *(int(a) for a in sys.argv[2:]))
