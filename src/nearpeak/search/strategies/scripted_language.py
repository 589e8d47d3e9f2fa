"""A language model without a language model: a script that reads the prompts of ``language`` and answers by rule.

It knows nothing but the prompt. Asked for first configurations it follows rules of thumb on the names of parameters (a
learning rate of a few hundredths, momentum 0.9, little decay, ...), the middle where it has none, and varies them.
Asked for values it averages those of the nearest evaluations in view. Asked for better configurations it crosses the
best in view and moves them a little. Tests run on it, and the topic `language` where no command of a model is given.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.search.bayesian import Bayesian
from nearpeak.search.loop import Method
from nearpeak.search.parameters import Floats
from nearpeak.search.random_search import RandomSearch
from nearpeak.search.space import Space
from nearpeak.search.strategies.language import ROLES, Command, Language
from nearpeak.search.study import run, tabled
from nearpeak.search.trials.trainings import RECIPES, curves, spirals
from nearpeak.topic import Explanation, Option, Table, Topic, names

RULES: Final = {
    "rate": 0.05,
    "lr": 0.05,
    "momentum": 0.9,
    "decay": 1e-4,
    "dropout": 0.05,
    "batch": 16,
    "width": 1e9,
    "units": 1e9,
    "threads": 256,
    "block": 128,
    "tile": 4,
}
"""A good value, by a word in a parameter's name; one beyond the range means its end."""
_NEIGHBOURS: Final = 3


@dataclass(frozen=True)
class _Axis:
    """A parameter as the prompt describes it: its name and its values in the order of the unit interval."""

    name: str
    about: dict[str, Any]

    def unit(self, value: Any) -> float:  # noqa: ANN401
        """Its place in [0, 1]."""
        if "values" in self.about:
            return float(self.about["values"].index(value) / max(len(self.about["values"]) - 1, 1))
        low, high, number = (float(v) for v in (self.about["from"], self.about["to"], value))
        if self.about["scale"] == "log":
            low, high, number = np.log([low, high, number]).tolist()
        return (number - low) / max(high - low, 1e-300)

    def value(self, unit: float) -> Any:  # noqa: ANN401
        """The value nearest to a place."""
        unit = min(max(unit, 0.0), 1.0)
        if "values" in self.about:
            return self.about["values"][round(unit * (len(self.about["values"]) - 1))]
        low, high = float(self.about["from"]), float(self.about["to"])
        value = (
            float(np.exp(np.log(low) + unit * np.log(high / low)))
            if self.about["scale"] == "log"
            else low + unit * (high - low)
        )
        return round(value) if self.about["type"] == "integer" else value

    @property
    def thumb(self) -> float:
        """The place that the rules of thumb give it."""
        rule = next((good for word, good in RULES.items() if word in self.name.lower()), None)
        known = self.about.get("values", [self.about.get("from"), self.about.get("to")])
        if rule is None or not all(isinstance(v, (int, float)) for v in known):
            return 0.5
        if "values" in self.about:
            return self.unit(min(known, key=lambda v: abs(v - rule)))
        return min(max(self.unit(min(max(rule, known[0]), known[1])), 0.0), 1.0)


def scripted(prompt: str) -> str:
    """The reply to a prompt of ``language``; the same to the same prompt."""
    axes = [
        _Axis(about.pop("name"), about)
        for about in map(json.loads, re.findall(r'^\{"name".*\}$', prompt, re.MULTILINE))
    ]
    axes = [axis for axis in axes if "values" in axis.about or "from" in axis.about]
    rng = np.random.default_rng(zlib.crc32(prompt.encode()))
    trials = re.findall(r"^(\{.*\}) -> ([-+.\de]+)$", prompt, re.MULTILINE)
    seen = np.asarray([_place(axes, text) for text, _ in trials]).reshape(-1, len(axes))
    values = np.asarray([float(value) for _, value in trials])
    if asked := re.findall(r"^\d+: (\{.*\})$", prompt, re.MULTILINE):
        places = np.asarray([_place(axes, text) for text in asked])
        return "\n".join(f"{i}: {v:.6g}" for i, v in enumerate(_nearest(places, seen, values), 1))
    wanted = re.search(r"Suggest (\d+)", prompt)
    if wanted is None:
        return "I do not understand."
    count = int(wanted[1])
    places = _bred(seen, values, count, rng) if len(seen) else _thumbs(axes, count, rng)
    return "\n".join(json.dumps({a.name: a.value(u) for a, u in zip(axes, row, strict=True)}) for row in places)


def _place(axes: Sequence[_Axis], text: str) -> list[float]:
    given = json.loads(text)
    return [axis.unit(given[axis.name]) if axis.name in given else 0.5 for axis in axes]


def _thumbs(axes: Sequence[_Axis], count: int, rng: np.random.Generator) -> Floats:
    """What the rules say, then changes of it."""
    middle = np.asarray([axis.thumb for axis in axes])
    changed = rng.random((count, len(axes))) < 0.5
    changed[0] = False
    return np.clip(middle + changed * rng.normal(0, 0.2, (count, len(axes))), 0, 1)


def _nearest(places: Floats, seen: Floats, values: Floats) -> Floats:
    """Means of the nearest evaluations, the nearer the heavier; without any, 0."""
    if len(seen) == 0:
        return np.zeros(len(places))
    away = ((places[:, None] - seen) ** 2).sum(axis=2)
    near = np.argsort(away, axis=1, kind="stable")[:, :_NEIGHBOURS]
    weight = 1 / (np.take_along_axis(away, near, axis=1) + 1e-3)
    return np.asarray((weight * values[near]).sum(axis=1) / weight.sum(axis=1))


def _bred(seen: Floats, values: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Children of two of the best, some of their parameters moved."""
    best = seen[np.argsort(values, kind="stable")[: max(2, min(6, len(seen)))]]
    first, second = (best[rng.integers(0, len(best), count)] for _ in range(2))
    child = np.where(rng.random(first.shape) < 0.7, first, second)
    moved = rng.random(child.shape) < 0.4
    return np.clip(child + moved * rng.normal(0, 0.2, child.shape), 0, 1)


def _explain(command: str, roles: tuple[str, ...], recipes: int, evaluations: int, seeds: int) -> Explanation:
    if not 20 <= evaluations + 10 <= recipes or seeds < 1:
        raise UsageError(
            f"take at least 10 evaluations, 10 more recipes, and a seed, not {evaluations}, {recipes}, {seeds}"
        )
    ask = Command(command) if command else scripted
    task = "the training of a small neural network by stochastic gradient descent; the value is the held-out loss"
    points = RECIPES.sample(recipes, np.random.default_rng(0))
    space = Space(RECIPES.parameters, listed=points)
    assert space.grid is not None
    values = curves(space.grid.points, spirals(512), 12)[:, -1]
    methods: dict[str, Method] = {
        "language": Language(ask, roles or ROLES, task),
        "gp": Bayesian(initial=5),
        "random": RandomSearch(),
    }
    found = np.full((len(methods), seeds, evaluations), np.inf)
    for i, method in enumerate(methods.values()):
        for seed in range(seeds):
            seen = run(method, tabled(space, values), space, evaluations, seed).values
            found[i, seed] = np.minimum.accumulate(np.where(np.isfinite(seen), seen, np.inf))
    least = float(np.nanmin(values))
    regret = np.median(found - least, axis=1)
    return Explanation(
        {"least_loss": least, "model": command or "scripted"},
        (
            Table.of(
                "Median regret of the best recipe",
                method=list(methods),
                after_5=regret[:, 4],
                after_10=regret[:, 9],
                at_the_end=regret[:, -1],
            ),
        ),
        (
            f"After 5 evaluations the first choices of {'the model' if command else 'the script'} are "
            f"{regret[0, 4]:.3g} from the least loss of {recipes} recipes, those of random search {regret[2, 4]:.3g}.",
        ),
    )


TOPIC = Topic(
    "language",
    "What does a language model in the loop of a search gain, role by role?",
    "Liu et al., Large Language Models to Enhance Bayesian Optimization, ICLR 2024 (LLAMBO)",
    (
        Option(
            "command", str, "A command that reads a prompt and writes its reply; none: a script of rules answers.", ""
        ),
        Option("roles", names, "Of warm-start, surrogate, propose, between commas; none: all.", ()),
        Option("recipes", int, "Trainings in the table that is searched.", 100),
        Option("evaluations", int, "Of each search.", 20),
        Option("seeds", int, "Searches of each method.", 2),
    ),
    _explain,
    "--roles warm-start,propose --recipes 60 --evaluations 15 --seeds 1",
)
