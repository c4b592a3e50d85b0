"""The report of a reproduction: our figures beside the paper's, and what of its orderings shows; as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from infra.base.progress import duration
from infra.base.versions import Version
from tuning.reproduce.config import ReproduceRecipe
from tuning.reproduce.figures import METRICS, Results
from tuning.reproduce.kept import TrialKept
from tuning.reproduce.measure import OWN, REFERENCE_ONLY, TEXT_ONLY, box_variant
from tuning.reproduce.orderings import Judged, Side, verdicts
from tuning.reproduce.rows import BOX_IOUS, FULL, Row, Trial

PAPER_BOXES = dict(zip(BOX_IOUS, (78.93, 77.91), strict=True))
LEAST_SPREAD = 0.1
"""Of β over the test queries: standard deviation over mean."""
ADAPTS = f"β ≥ 0, and its std / mean over the test queries is at least {LEAST_SPREAD:g}"


@dataclass(frozen=True)
class Reported:
    """All that the report says."""

    recipe: ReproduceRecipe
    dataset: Version
    results: Results
    judged: list[Judged]
    verdicts: Mapping[tuple[str, str], bool]
    beta: dict[str, Any] | None
    chance: dict[str, float]
    kept: Mapping[Trial, TrialKept]
    missing: list[str]
    failed: Mapping[str, str]

    @classmethod
    def of(
        cls,
        recipe: ReproduceRecipe,
        dataset: Version,
        results: Results,
        kept: Mapping[Trial, TrialKept],
        missing: list[str],
        failed: Mapping[str, str],
    ) -> Reported:
        """From the ranks of the trials that are there."""
        found, beta = results.judged(), results.beta()
        told = dict(verdicts(found))
        if beta is not None:
            told[("S", ADAPTS)] = spread(beta) >= LEAST_SPREAD and min(beta["least"]) >= 0
        return cls(recipe, dataset, results, found, told, beta, chance(dataset), kept, missing, failed)

    def figures(self) -> dict[str, Any]:
        """The numbers of the report, JSON-able."""
        return {
            "dataset": self.dataset.manifest.content_hash,
            "trials": len(self.kept),
            "missing": self.missing,
            "failed": dict(self.failed),
            "seconds": sum(one.train_s + one.measure_s for one in self.kept.values()),
            "rows": [
                {"label": label, "paper": paper, "seeds": len(self.results.parts[side])}
                | {m: [float(v) for v in self.results.of_seeds(side, m)] for m in METRICS}
                for label, side, paper in self._sides()
            ],
            "orderings": [
                {"level": level, "ordering": name, "verdict": said}
                for (level, name), said in self.told().items()
            ],
            "comparisons": [_comparison(one) for one in self.judged],
            "beta": self.beta,
        }

    def lines(self) -> Iterator[str]:
        """The orderings, a line each."""
        for (level, name), said in self.told().items():
            yield f"[{level}] {said}  {name}"

    def told(self) -> dict[tuple[str, str], str]:
        """(level, ordering) → pass, FAIL, or open where comparisons are missing and none failed."""
        unsaid = self.results.open()
        said = {
            key: "FAIL" if not passed else "open" if key in unsaid else "pass"
            for key, passed in self.verdicts.items()
        }
        return said | {key: "open" for key in sorted(unsaid) if key not in said}

    def _sides(self) -> Iterator[tuple[str, Side, float | None]]:
        """(label, side, the paper's Avg) of every line of the table that is there."""
        for row in self.results.rows:
            wanted = [(row.label, Side(row.name), row.paper)]
            if row.name == FULL:
                wanted += [
                    (f"AdaFocal, box IoU {iou:g}", Side(FULL, box_variant(iou)), PAPER_BOXES[iou])
                    for iou in BOX_IOUS
                ]
                wanted += [(f"AdaFocal, {v}", Side(FULL, v), None) for v in (TEXT_ONLY, REFERENCE_ONLY)]
            yield from (one for one in wanted if one[1] in self.results.parts)

    def page(self) -> str:
        """The report."""
        return (
            "\n".join([*self._head(), *self._table(), *self._orderings(), *self._beta(), *self._cost()])
            + "\n"
        )

    def _head(self) -> Iterator[str]:
        world, recipe = self.dataset.manifest, self.recipe
        queries = len(self.results.parts[next(iter(self.results.parts))][0])
        yield f"# {recipe.title}"
        yield ""
        yield (
            f"Made by `oacir reproduce` ({recipe.name}): {len(self.results.rows)} rows, {recipe.seeds}"
            f" seed{'s' * (recipe.seeds > 1)}, {queries:,} test queries of the benchmark {world.name}"
            f" (content {world.content_hash[:12]}…), {len(self.kept)} trainings."
        )
        if recipe.seeds == 1:
            yield "One seed: what another training would give is not part of the intervals."
        if self.missing:
            yield ""
            yield f"**Not whole.** {len(self.missing)} trainings are not there: {', '.join(self.missing)}."
        for name, reason in self.failed.items():
            yield f"- {name} failed: {reason}"
        yield ""

    def _table(self) -> Iterator[str]:
        yield "## Figures"
        yield ""
        yield (
            "Percent, mean over the domains and seeds; ± is the standard deviation over the seeds. The last column is"
            " **published, not ours**: ViT-G on OACIRR, another benchmark of another size, for the order of the rows,"
            " not for their height."
        )
        yield ""
        yield f"| | seeds | {' | '.join(METRICS)} | paper's Avg |"
        yield "|---|--:|" + "--:|" * (len(METRICS) + 1)
        for label, side, paper in self._sides():
            cells = [_cell(self.results.of_seeds(side, m)) for m in METRICS]
            stated = "" if paper is None else f"{paper:.2f}"
            yield f"| {label} | {len(self.results.parts[side])} | {' | '.join(cells)} | {stated} |"
        cells = [f"{self.chance[m]:.1f}" for m in METRICS]
        yield f"| chance | | {' | '.join(cells)} | |"
        yield ""

    def _orderings(self) -> Iterator[str]:
        yield "## Orderings"
        yield ""
        yield (
            "[S] is demanded, [W] reported. A comparison passes if it is not significantly reversed, and, where the"
            " paper's gap exceeds 2 points, only if it is significant. Paired by query: the interval of a bootstrap and"
            " a sign-flip test, both over whole instances"
            + (" and seeds" if self.recipe.seeds > 1 else "")
            + ". Reversal is judged by p as it is, significance by p corrected for all comparisons here (Holm)."
        )
        yield ""
        yield "| | ordering | |"
        yield "|---|---|---|"
        for (level, name), said in self.told().items():
            yield f"| [{level}] | {name} | {'**FAIL**' if said == 'FAIL' else said} |"
        yield ""
        yield "| ordering | compared | metric | ours, points (95 %) | p (Holm) | paper's gap | |"
        yield "|---|---|---|--:|--:|--:|---|"
        labels = {side: label for label, side, _ in self._sides()}
        for one in self.judged:
            gate, d = one.gate, one.difference
            gap = "" if gate.paper is None else f"{gate.paper:+.2f}"
            p = "< 0.001" if one.corrected < 0.0005 else f"{one.corrected:.3f}"
            sign = "≈" if gate.kind == "about equal" else ">"
            yield (
                f"| {gate.ordering} | {labels[gate.first]} {sign} {labels[gate.second]} | {gate.metric} |"
                f" {d.value:+.1f} ({d.low:+.1f} to {d.high:+.1f}) | {p} | {gap} |"
                f" {'pass' if one.passed else '**FAIL**'}: {one.why} |"
            )
        yield ""

    def _beta(self) -> Iterator[str]:
        if self.beta is None:
            return
        beta = self.beta
        yield "## β"
        yield ""
        yield (
            f"Learned β over the test queries: mean {_each(beta['mean'])}, standard deviation {_each(beta['std'])},"
            f" least {_each(beta['least'])} (a figure a seed). std / mean is {spread(beta):.2f} in the mean; at least"
            f" {LEAST_SPREAD:g} is demanded."
        )
        yield ""
        yield "| β against | |"
        yield "|---|--:|"
        for name, words in (
            ("box_share", "area of the box (Spearman)"),
            ("words", "words of the text (Spearman)"),
            ("target_rank", "rank of the target (Spearman)"),
            ("domain", "domain (share of the variance between them)"),
        ):
            yield f"| {words} | {_each(beta[name])} |"
        yield ""

    def _cost(self) -> Iterator[str]:
        trained = [one.train_s for one in self.kept.values()]
        ranked = [one.measure_s for one in self.kept.values()]
        yield "## Cost"
        yield ""
        yield (
            f"{len(trained)} trainings of {fmean(trained):.0f} s in the mean (longest {max(trained):.0f} s) and"
            f" {fmean(ranked):.0f} s of ranking each: {duration(sum(trained) + sum(ranked))} one after another. A"
            " training that was found again counts what finding it took."
        )


def page(whole: Reported) -> str:
    """The report as Markdown."""
    return whole.page()


def spread(beta: Mapping[str, Sequence[float]]) -> float:
    """std / mean of β, mean over the seeds."""
    return fmean(s / m if m else 0.0 for s, m in zip(beta["std"], beta["mean"], strict=True))


def chance(dataset: Version) -> dict[str, float]:
    """What a random order scores, percent, mean over the domains."""
    from pipelines.retrieval.inputs import load_tasks
    from pipelines.retrieval.protocols.oacirr import BUILT
    from pipelines.retrieval.summary import candidates

    among = [candidates(task) for task in load_tasks(dataset, "test")]
    return {metric: fmean(BUILT.chance(metric, one) for one in among) for metric in METRICS}


def _comparison(one: Judged) -> dict[str, Any]:
    gate, found = one.gate, one.difference
    return {
        "level": gate.level,
        "ordering": gate.ordering,
        "first": [gate.first.row, gate.first.variant],
        "second": [gate.second.row, gate.second.variant],
        "metric": gate.metric,
        "kind": gate.kind,
        "paper": gate.paper,
        **found._asdict(),
        "corrected": one.corrected,
        "passed": one.passed,
        "why": one.why,
    }


def _cell(values: Any) -> str:
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def _each(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


__all__ = ["OWN", "Reported", "Row", "chance", "page", "spread"]
