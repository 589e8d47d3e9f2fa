"""`compare`: which algorithm wins over the problems of a table of runs, by how much and how surely (``comparison``),
where it does not, and what to try next (``fallback``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nearpeak.errors import UsageError
from nearpeak.inference.columns import read
from nearpeak.inference.comparison import FAMILIES, Comparison, Effect, compare_algorithms, interactions
from nearpeak.inference.fallback import fallback_chain
from nearpeak.topic import Explanation, Option, Table, Topic, names

UNSETTLED = 1.05
"""R-hat above which chains have not met and no figure should be read."""


def _effect_rows(effects: Sequence[Effect]) -> tuple[Mapping[str, Any], ...]:
    return tuple(
        {"effect": e.name, "estimate": e.effect, "low": e.low, "high": e.high, "better_probability": e.better}
        for e in effects
    )


def _sentence(found: Comparison) -> str:
    """Who wins, by how much, how sure, on a typical problem."""
    leader = found.algorithms[int(np.argmax(found.best))]
    rival = found.against(leader)[0]
    against = found.contrast(leader, {leader: 1.0, rival.name: -1.0})
    unit = {"gaussian": "lower by", "bernoulli": "odds of success times"}.get(found.family, "takes times")
    size = (
        f"{unit} {-against.effect if found.family == 'gaussian' else against.effect:.3g} "
        f"({100 * found.level:g} %: {-against.high if found.family == 'gaussian' else against.low:.3g} to "
        f"{-against.low if found.family == 'gaussian' else against.high:.3g})"
    )
    verdict = "wins" if against.sure(found.neutral) else "leads, but not surely"
    return f"{leader} {verdict}: against {rival.name}, the next, {size}; better with probability {against.better:.3g}."


def _explain(
    file: str, value: str, family: str, baseline: str | None, factors: tuple[str, ...], level: float, seed: int
) -> Explanation:
    if len(factors) not in (0, 2):
        raise UsageError(f"factors are two columns, not {len(factors)}")
    label = factors or ("algorithm",)
    columns = read(
        file, ("problem", *label, *(() if family == "bernoulli" and value == "success" else (value,))), ("success",)
    )
    algorithm = np.array([" / ".join(map(str, row)) for row in zip(*(columns[f] for f in label), strict=True)])
    outcome = columns.get("success")
    ran = np.ones(len(algorithm), bool) if outcome is None or family == "bernoulli" else outcome.astype(float) == 1
    main = compare_algorithms(
        columns["problem"][ran], algorithm[ran], columns[value][ran].astype(float), family, baseline, level, seed
    )
    found = [main]
    if outcome is not None and family != "bernoulli":
        every = outcome.astype(float)
        if 0 < every.mean() < 1:
            found.append(
                compare_algorithms(columns["problem"], algorithm, every, "bernoulli", main.baseline, level, seed)
            )
    tables = [f.table() for f in found]
    if factors:
        first, second = zip(*(a.split(" / ") for a in main.algorithms), strict=True)
        tables.append(Table("Main effects and interaction", _effect_rows(interactions(main, first, second))))
    chain = fallback_chain(main, found[1] if len(found) > 1 and family != "gaussian" else None)
    tables.append(
        Table(
            "Which to try on each problem, in order",
            tuple(
                {
                    "problem": p,
                    "chain": " > ".join(main.algorithms[j] for j in order),
                    "first_best_probability": float(b),
                    "expected": float(c),
                    "success_probability": float(s),
                }
                for p, order, b, c, s in zip(
                    main.problems, chain.order, chain.first_best, chain.cost, chain.success, strict=True
                )
            ),
        )
    )
    odd = main.exceptions()
    says = [_sentence(f) for f in found]
    says.append(
        f"On {len({p for p, _, _ in odd})} of {len(main.problems)} problems an algorithm's effect surely differs from "
        "its typical one."
        + (f" The most unusual: {odd[0][1]} on {odd[0][0]}, {odd[0][2].effect:.3g}." if odd else "")
    )  # fmt: skip
    says.extend(
        f"R-hat is {f.posterior.r_hat:.3f}: the chains have not met, do not read the {f.family} figures."
        for f in found
        if f.posterior.r_hat > UNSETTLED
    )
    return Explanation(
        {
            "problems": len(main.problems),
            "runs": int(ran.sum()),
            "between_problems_deviation": float(np.median(main.posterior.between)),
            "interaction_deviation": float(np.median(main.posterior.within)),
            "r_hat": main.posterior.r_hat,
            "effective_draws": main.posterior.size,
        },
        tuple(tables),
        tuple(says),
    )


TOPIC = Topic(
    "compare",
    "Which of several algorithms or implementations wins over many problems, by how much, and how sure is it?",
    "Goswami, Bayesian hierarchical models for quantitative estimates for performance metrics applied to saddle search "
    "algorithms, AIP Advances 2025 (arXiv 2505.13621)",
    (
        Option("file", str, "CSV or Parquet with columns problem, algorithm, a value, and if runs can fail success."),
        Option("value", str, "Column of the value; smaller is better, but for successes.", "value"),
        Option("family", str, f"What the value is: {', '.join(FAMILIES)}.", "lognormal"),
        Option("baseline", str, "Algorithm that effects are against; the first one of the file by default.", None),
        Option("factors", names, "Two columns whose combinations are the algorithms, e.g. rotation,removal.", ()),
        Option("level", float, "Probability inside the intervals.", 0.9),
        Option("seed", int, "Seed of the sampler.", 0),
    ),
    _explain,
    "--file runs.csv --family lognormal",
)
