"""The rows of one table: models in the order of the main score, with intervals and tests against the highest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from infra.base.errors import VersionError
from infra.base.versions import Version
from pipelines.retrieval.compared import Compared, dataset_of
from pipelines.retrieval.differences import NO_DIFFERENCE, by_model, over_seeds, paired
from pipelines.retrieval.leaderboard.groups import Group
from pipelines.retrieval.protocols.known import stated_in
from pipelines.retrieval.summary import FEW_QUERIES

HIGHEST, WORSE = "highest", "worse"
VIEWS = {"crop": "sees only the box", "drawn": "sees the box drawn in red"}
ENTITIES = {"named": "text names the category", "drawn": "text speaks of the red box"}


@dataclass(frozen=True)
class Score:
    """A metric of a model, percent, with its 95 % interval; None where it has none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Row:
    """A model of a table."""

    model: str
    rank: int | None
    """1 = highest, equal scores share one; None where there are too few queries to rank models."""
    scores: dict[str, Score]
    """By metric, the main one first."""
    blind: tuple[float | None, float | None]
    """The main score with the reference lent by others (text only), and with the text lent (reference only)."""
    verdict: str
    """highest, no difference shown, worse, or why it was not tested; empty where it stands alone."""
    gap: Score | None
    """Points to the highest, where it was tested."""
    p: float | None
    clear: bool
    """Highest, and shown so against every other."""
    runs: list[str]
    evaluations: list[str]
    dates: list[str]
    settings: list[str]


@dataclass(frozen=True)
class Table:
    """A group with its rows in order."""

    group: Group
    main: str
    metrics: list[str]
    """Those shown, the main one first."""
    chance: dict[str, float]
    rows: list[Row]
    notes: list[str]


def table_of(root: str, group: Group, seed: int = 0) -> Table:
    """Order and test the models of a group.

    Args:
        root: where the benchmark is looked for, which the tests need.
        group: of evaluations that compare.
        seed: of the tests' resampling.
    """
    stated = stated_in(group.figures)
    main = str(stated["main"])
    metrics = [main, *(name for name in stated["headline"] if name != main)]
    models = by_model(group.members)
    dataset, problem = _dataset(root, group)
    scores = {name: {m: _score(seeds, m, dataset, seed) for m in metrics} for name, seeds in models.items()}
    order = sorted(models, key=lambda name: (-scores[name][main].value, name))
    against = _against_highest(dataset, models, order, main, seed) if dataset is not None else {}
    few = group.figures["overall"]["queries"] < FEW_QUERIES
    clear = not few and len(order) > 1 and len(against) == len(order) - 1
    clear = clear and all(verdict == WORSE for verdict, _, _ in against.values())
    rows = [
        _row(
            models[name],
            None if few else 1 + sum(scores[other][main].value > scores[name][main].value for other in order),
            scores[name],
            against.get(name, (_alone(number, len(order), problem), None, None)),
            clear and number == 1,
        )
        for number, name in enumerate(order, 1)
    ]
    measures = group.figures["overall"]["metrics"]
    return Table(
        group, main, metrics, {m: measures[m]["chance"] for m in metrics}, rows, _notes(group, problem)
    )


def _dataset(root: str, group: Group) -> tuple[Version | None, str]:
    if len(by_model(group.members)) == len(group.members) == 1:
        return None, ""
    try:
        return dataset_of(root, group.members[0]), ""
    except VersionError as error:
        return None, str(error)


def _score(seeds: Sequence[Compared], metric: str, dataset: Version | None, seed: int) -> Score:
    found = [one.figures["overall"]["metrics"][metric] for one in seeds]
    if len(seeds) == 1:
        return Score(found[0]["value"], found[0]["low"], found[0]["high"])
    if dataset is None:
        return Score(fmean(measure["value"] for measure in found), None, None)
    mean = over_seeds(dataset, seeds, metric, seed)
    return Score(mean.value, mean.low, mean.high)


def _against_highest(
    dataset: Version, models: Mapping[str, Sequence[Compared]], order: Sequence[str], main: str, seed: int
) -> dict[str, tuple[str, Score | None, float | None]]:
    """Verdict, gap and p of every model but the highest."""
    if len(order) < 2:
        return {}
    pairs = [(name, order[0]) for name in order[1:]]
    return {
        name: (
            WORSE if difference.shown(p) and difference.value < 0 else NO_DIFFERENCE,
            Score(difference.value, difference.low, difference.high),
            p,
        )
        for name, _, _, difference, p in paired(dataset, models, pairs, [main], seed)
    }


def _alone(number: int, count: int, problem: str) -> str:
    if count == 1:
        return ""
    return HIGHEST if number == 1 else f"not tested{': the benchmark is not there' if problem else ''}"


def _row(
    seeds: Sequence[Compared],
    rank: int | None,
    scores: dict[str, Score],
    against: tuple[str, Score | None, float | None],
    clear: bool,
) -> Row:
    verdict, gap, p = against
    main = next(iter(scores))
    blind = [
        _mean([one.figures["overall"]["metrics"][main][kind] for one in seeds])
        for kind in ("text_only", "reference_only")
    ]
    stated = [settings_of(one.figures) for one in seeds]
    settings = list(dict.fromkeys(words for own in stated for words in own))
    if len(seeds) > 1:
        settings.insert(0, f"mean of {len(seeds)} seeds")
    return Row(
        model=seeds[0].model,
        rank=rank,
        scores=scores,
        blind=(blind[0], blind[1]),
        verdict=verdict,
        gap=gap,
        p=p,
        clear=clear,
        runs=list(dict.fromkeys(_run(one) for one in seeds)),
        evaluations=[f"{one.evaluation.manifest.name}/{one.evaluation.manifest.key}" for one in seeds],
        dates=sorted({one.evaluation.manifest.created_at[:10] for one in seeds}),
        settings=settings,
    )


def settings_of(figures: Mapping[str, Any]) -> list[str]:
    """How a model was asked, in words; only what is not the plain way."""
    asked = figures.get("asked") or {}
    said = [VIEWS.get(asked.get("reference_view", ""), ""), ENTITIES.get(asked.get("text_entity", ""), "")]
    if asked.get("region") == "mask":
        said.append(f"masks of {asked['regions']['mask']:,} queries")
    foreign, beta = figures.get("foreign"), figures.get("beta")
    if foreign:
        weight = f", {foreign['text_weight']:g} text" if "text_weight" in foreign else ""
        said.append(f"{foreign['model_type']}, {foreign['setting']}, {foreign['compose']}{weight}")
    else:
        said.append("no β" if beta is None else f"β {beta['mean']:.2g} ± {beta['std']:.2g}")
    unseen = figures.get("unseen") or ()
    if unseen:
        said.append(f"not trained on {', '.join(unseen)}")
    return [words for words in said if words]


def _run(one: Compared) -> str:
    stated = one.figures["model"]
    if one.run is None:
        return f"{stated['name']} ({stated['content_hash'][:12]})"
    return f"{one.run.manifest.name}/{one.run.manifest.key}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _notes(group: Group, problem: str) -> list[str]:
    said = [set(one.figures["notes"]) for one in group.members]
    common = [note for note in group.figures["notes"] if all(note in own for own in said)]
    return [*common, *([f"differences were not tested: {problem}"] if problem else [])]
