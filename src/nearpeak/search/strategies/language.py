"""A language model in the loop of Bayesian optimization: it begins, judges and proposes, each only if it is asked to.

The space and the evaluations are written as text, one JSON object a configuration. Three roles, each of which swaps in
for its part of the Gaussian-process loop or out:

    warm-start  names the first configurations from what it knows of such tasks (else a design that fills the space)
    propose     names configurations whose value should be ``best - stretch * (worst - best)`` (else candidates are
                searched for)
    surrogate   says what value candidates will have, several times, each time with other evaluations in view and in
                another order; mean and standard deviation of its answers are the beliefs (else a Gaussian process)

The candidate of largest expected improvement is evaluated. What of a reply cannot be read is left out: a configuration
that is none is not proposed and its place is drawn, a value that is missing counts as the mean of all, with
their spread.

Liu, Astorga, Seedat, van der Schaar: Large Language Models to Enhance Bayesian Optimization, ICLR 2024 (LLAMBO).
"""

import json
import math
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from nearpeak.errors import NearpeakError, UnknownName, UsageError
from nearpeak.search.acquisitions.analytic import log_improvement
from nearpeak.search.bayesian import Bayesian, Surrogate, believed, gp_surrogate, incumbent
from nearpeak.search.candidates import initial_design, unseen
from nearpeak.search.history import History, matches
from nearpeak.search.parameters import Categorical, Float, Floats, Integer, Ordinal, Parameter, Permutation
from nearpeak.search.space import Space

Ask = Callable[[str], str]
"""A prompt to its reply. A search resumes exactly only if equal prompts give equal replies."""

ROLES: Final = ("warm-start", "surrogate", "propose")
_OUTLIER: Final = 10.0
"""A predicted value so many standard deviations from those seen is no answer."""


def described(space: Space) -> str:
    """The parameters of a space, one JSON object a line, then what must hold."""
    lines = [json.dumps({"name": name} | _about(p)) for name, p in space.parameters.items()]
    lines += [f"Only if {text}: {name}" for name, text in space.conditions.items()]
    lines += [f"It must hold that {text}" for text in space.constraints]
    return "\n".join(lines)


def _about(parameter: Parameter) -> dict[str, Any]:
    if isinstance(parameter, (Integer, Float)):
        kind = "integer" if isinstance(parameter, Integer) else "number"
        scale = "log" if parameter.log else "linear"
        return {"type": kind, "from": parameter.low, "to": parameter.high, "scale": scale}
    if isinstance(parameter, (Ordinal, Categorical)):
        kind = "ordered" if isinstance(parameter, Ordinal) else "unordered"
        return {"type": kind, "values": list(parameter.choices)}
    if isinstance(parameter, Permutation):
        return {"type": "permutation", "of": list(range(parameter.items))}
    return {"type": "weights that sum to 1", "count": parameter.width}


def written(space: Space, points: Floats) -> list[str]:
    """Configurations ``[n, width]`` as JSON objects."""
    return [json.dumps(space.describe(point), default=str) for point in points]


def listed(space: Space, history: History) -> str:
    """Evaluations, ``configuration -> value`` a line."""
    texts = written(space, history.points)
    values = [f"{v:.6g}" if math.isfinite(v) else "failed" for v in history.values.tolist()]
    return "\n".join(f"{text} -> {value}" for text, value in zip(texts, values, strict=True))


def read_configurations(space: Space, reply: str) -> Floats:
    """The configurations of the space that a reply names, each once, ``[n, width]``; all else in it is left out.

    Numbers between listed values are taken to the nearest, and where a list says which configurations there are, so are
    configurations (by their features).
    """
    found, free = np.empty((0, space.width)), replace(space, listed=None)
    features = np.empty((0, 0)) if space.listed is None else space.encode(space.listed)
    for text in re.findall(r"\{[^{}]*\}", reply):
        try:
            given = json.loads(text)
            row = free.rows([{k: _nearest(space.parameters.get(k), v) for k, v in given.items()}])
        except (NearpeakError, ValueError, TypeError, OverflowError, RecursionError):
            continue
        if space.listed is not None:
            row = space.listed[[np.argmin(((features - space.encode(row)) ** 2).sum(axis=1))]]
        if not matches(found, row[0]).any():
            found = np.vstack([found, row])
    return found


def _nearest(parameter: Parameter | None, value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return value
    if isinstance(parameter, Integer):
        return round(value)
    if isinstance(parameter, Ordinal) and all(isinstance(c, (int, float)) for c in parameter.choices):
        inside = min(parameter.choices) <= value <= max(parameter.choices)
        return min(parameter.choices, key=lambda c: abs(c - value)) if inside else value
    return value


def read_values(reply: str, count: int) -> Floats:
    """Values for the configurations 1 to ``count``, ``number: value`` a line in the reply; NaN: none, ``[count]``."""
    found = np.full(count, np.nan)
    for number, text in re.findall(r"^\s*(\d{1,9})\s*:\s*([-+.\deE]+)\s*$", reply, re.MULTILINE):
        try:
            value = float(text)
        except ValueError:
            continue
        if 1 <= int(number) <= count and math.isfinite(value):
            found[int(number) - 1] = value
    return found


@dataclass(frozen=True)
class Language:
    """Bayesian optimization with a language model in some roles.

    Attributes:
        ask: the model. roles: of ``ROLES``. task: what is tuned, a sentence for the prompt. initial: evaluations before
            there are beliefs. candidates: configurations asked for and judged at a step. samples: answers to each
            question of the surrogate. shown: evaluations that a prompt holds at most; the best are always among those
            of a proposal. stretch: how far below the best the target is. surrogate: beliefs where the model has not
            that role.
    """

    ask: Ask
    roles: tuple[str, ...] = ROLES
    task: str = "a function whose value is to be made small"
    initial: int = 5
    candidates: int = 20
    samples: int = 5
    shown: int = 40
    stretch: float = 0.1
    surrogate: Surrogate = gp_surrogate

    def __post_init__(self) -> None:
        for role in self.roles:
            if role not in ROLES:
                raise UnknownName("role", role, ROLES)
        if min(self.initial, self.candidates, self.samples, self.shown) < 1:
            raise UsageError("initial, candidates, samples and shown are at least 1")

    def propose(self, space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
        """The next points, ``[count, width]``; fewer where the space has no more."""
        chosen = np.empty((0, space.width))
        for _ in range(count):
            begun = len(history) + len(history.pending)
            if begun < self.initial or history.succeeded.sum() < 2:
                point = self._first(space, history, rng)
            elif "surrogate" in self.roles or "propose" in self.roles:
                point = self._next(space, history, rng)
            else:
                point = Bayesian(self.surrogate, initial=self.initial).propose(space, history, 1, rng)
            if len(point) == 0:
                break
            chosen, history = np.vstack([chosen, point]), history.waiting_for(point)
        return chosen

    def _first(self, space: Space, history: History, rng: np.random.Generator) -> Floats:
        design = initial_design(space, max(self.initial, 1), np.random.default_rng(history.seed))
        begun = len(history) + len(history.pending)
        if "warm-start" in self.roles:
            reply = self.ask(
                f"{self._opening(space)}\n\nNothing was evaluated yet. Suggest {self.initial} configurations that are "
                "good for such a task, each different, one JSON object a line, nothing else."
            )
            named = _fresh(space, read_configurations(space, reply or ""), history)
            if len(named):
                return named[:1]
        later = _fresh(space, np.vstack([design[begun:], design, space.sample(8, rng)]), history)
        return later[:1]

    def _next(self, space: Space, history: History, rng: np.random.Generator) -> Floats:
        pool = np.empty((0, space.width))
        if "propose" in self.roles:
            pool = _fresh(space, read_configurations(space, self.ask(self._wanted(space, history)) or ""), history)
            pool = pool[: self.candidates]
        if lacking := self.candidates - len(pool):
            pool = np.vstack([pool, drawn(space, history, lacking, rng)])
        if len(pool) == 0:
            return pool
        if "surrogate" in self.roles:
            mean, sd = self.beliefs(space, history, pool, rng)
            best = float(history.values[history.feasible if history.feasible.any() else history.succeeded].min())
        else:
            known = believed(space, history, self.surrogate, rng) if len(history.pending) else history
            posterior = self.surrogate(space, known, rng)
            mean, sd = posterior.predict(space.encode(pool))
            best = incumbent(space, known, posterior)
        return pool[[int(np.argmax(log_improvement((best - mean) / sd) + np.log(sd)))]]

    def beliefs(
        self, space: Space, history: History, points: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats]:
        """Mean and standard deviation of what the model answers about configurations ``[m, width]``, ``[m]`` each.

        Each answer sees four fifths of the evaluations, at most ``shown``.
        """
        known = history.values[history.succeeded]
        centre, spread = float(known.mean()), max(float(known.std()), 1e-12 * (1 + abs(float(known.mean()))))
        asked = "\n".join(f"{i}: {text}" for i, text in enumerate(written(space, points), 1))
        answers = np.empty((self.samples, len(points)))
        for i in range(self.samples):
            seen = rng.permutation(len(history))[: min(math.ceil(0.8 * len(history)), self.shown)]
            answers[i] = read_values(
                self.ask(
                    f"{self._opening(space)}\n\nEvaluated:\n{listed(space, _part(history, seen))}\n\n"
                    f"Predict the value of each of these, one line each, as 1: 0.5, nothing else.\n{asked}"
                )
                or "",
                len(points),
            )
        answers[np.abs(answers - centre) > _OUTLIER * spread] = np.nan
        answered = np.isfinite(answers)
        many = answered.sum(axis=0)
        mean = np.where(answered, answers, 0.0).sum(axis=0) / np.maximum(many, 1)
        variance = np.where(answered, (answers - mean) ** 2, 0.0).sum(axis=0) / np.maximum(many - 1, 1)
        mean = np.where(many > 0, mean, centre)
        sd = np.where(many > 1, np.sqrt(variance), spread)
        return mean, np.maximum(sd, 1e-3 * spread)

    def _opening(self, space: Space) -> str:
        return f"You tune {self.task}. Smaller values are better. Parameters:\n{described(space)}"

    def _wanted(self, space: Space, history: History) -> str:
        values = history.losses
        order = np.argsort(values, kind="stable")[: self.shown]
        known = history.values[history.feasible if history.feasible.any() else history.succeeded]
        target = known.min() - self.stretch * np.ptp(known)
        return (
            f"{self._opening(space)}\n\nEvaluated:\n{listed(space, _part(history, order))}\n\n"
            f"Suggest {self.candidates} new configurations whose value should be about {target:.6g}, each different, "
            "one JSON object a line, nothing else."
        )


def drawn(space: Space, history: History, count: int, rng: np.random.Generator) -> Floats:
    """Candidates without a language model: half of them changes of the best seen, half draws, ``[count, width]``."""
    order = history.ranking[:5]
    near = space.moved(history.points[np.resize(order, 2 * count)], rng)
    near = _fresh(space, near, history)[: (count + 1) // 2]
    return _fresh(space, np.vstack([near, space.sample(count, rng)]), history)[:count]


def _fresh(space: Space, points: Floats, history: History) -> Floats:
    """Those neither evaluated nor being so, each once, in their order."""
    points = unseen(space, points, history)
    seen = np.vstack([history.points, history.pending])
    points = points[[not matches(seen, point).any() for point in points]] if len(points) else points
    points = points[np.sort(np.unique(np.nan_to_num(points, nan=-1e300), axis=0, return_index=True)[1])]
    return points


def _part(history: History, rows: Sequence[int] | np.ndarray[Any, Any]) -> History:
    return History.of(history.points[rows], history.values[rows])


@dataclass(frozen=True)
class Command:
    """A model behind a command that reads a prompt and writes its reply: ``ollama run qwen3``, ``llm -m NAME``.

    Attributes:
        command: as one types it. limit: seconds that it may take.
    """

    command: str
    limit: float = 120.0

    def __call__(self, prompt: str) -> str:
        """The reply.

        Raises:
            NearpeakError: the command cannot be run, fails or takes too long.
        """
        try:
            done = subprocess.run(
                shlex.split(self.command), input=prompt, capture_output=True, text=True, timeout=self.limit, check=True
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise NearpeakError(f"the language model {self.command!r} did not answer: {error}") from None
        return done.stdout
