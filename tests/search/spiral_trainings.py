"""Trainings on spirals that start, go on and are judged: what ``Resumed`` needs, importable by its workers."""

from collections.abc import Mapping
from typing import Any

from nearpeak.search.trials.trainings import RECIPES, Networks, advance, begin, loss, spirals

DATA = spirals(256)


def starting(configuration: Mapping[str, Any]) -> Networks:
    return begin(RECIPES.rows([configuration]), DATA)


def going_on(networks: Networks) -> Networks:
    return advance(networks, DATA)


def judged(networks: Networks) -> float:
    return float(loss(networks, DATA)[0])
