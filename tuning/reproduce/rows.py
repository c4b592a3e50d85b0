"""The rows of the ablation matrix: what each changes of the training recipe, and what the paper reports of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tuning.space import Values

FULL, SPRC, SPRC_CAAM, BARE, CROP = "adafocal", "sprc", "sprc_caam", "beta0", "roi_crop"
BOX_IOUS = (0.8, 0.5)
"""Boxes that AdaFocal is asked with beside the right ones, by their IoU with these."""
CROSSED = {FULL: "cross_adafocal", SPRC: "cross_sprc"}
"""Row → the same model, each domain measured by the training that left it out."""


@dataclass(frozen=True)
class Row:
    """A row of the matrix: one training for each seed, several where domains are left out in turn."""

    name: str
    label: str
    values: Values = field(default_factory=dict, hash=False)
    """Dotted fields of the training recipe."""
    paper: float | None = None
    """What the paper reports, Avg in percent: ViT-G on OACIRR; None where it gives none."""
    beta: float | None = None
    """Of a row of the fixed-β sweep."""
    crossed: bool = False
    """Whether it is trained once without each domain."""


@dataclass(frozen=True)
class Trial:
    """One training: a row, a seed and perhaps the domain that is left out."""

    row: Row
    seed: int
    without: str | None = None

    @property
    def name(self) -> str:
        """Of its record and its run."""
        return "-".join([self.row.name, *([] if self.without is None else [self.without]), f"s{self.seed}"])

    @property
    def values(self) -> Values:
        """Dotted fields of the training recipe."""
        left = {} if self.without is None else {"training.leave_out_domains": [self.without]}
        return {**self.row.values, **left, "model.seed": self.seed, "training.seed": self.seed}


def matrix(betas: Sequence[float], everything: bool) -> list[Row]:
    """The rows, in the order of the report.

    Args:
        betas: of the fixed-β sweep.
        everything: also what only the orderings [W] speak of, and the baselines that none does.
    """
    none = {"model.modulation": "none"}
    rows = [
        Row(FULL, "AdaFocal", paper=79.00),
        Row(CROP, "ROI crop", {**none, "model.reference_view": "crop"}, 76.47),
        Row(BARE, "β = 0", none, 74.91),
        *(
            Row(
                f"beta_{beta:g}",
                f"fixed β = {beta:g}",
                {"model.modulation": "fixed", "model.fixed_beta": beta},
                beta=beta,
            )
            for beta in betas
        ),
        Row(SPRC_CAAM, "SPRC†", {"model.method": "sprc"}, 75.21),
        Row(SPRC, "SPRC", {"model.method": "sprc", **none}, 74.05),
        Row(CROSSED[FULL], "AdaFocal, domain left out", paper=62.57, crossed=True),
        Row(
            CROSSED[SPRC], "SPRC, domain left out", {"model.method": "sprc", **none}, 57.16, crossed=True
        ),
    ]  # fmt: skip
    return [*rows, *_further(none)] if everything else rows


def _further(none: Values) -> list[Row]:
    frozen = {"model.trainable_probes": False}
    settings = [
        ("visual_anchor", "visual anchor", {**none, "model.reference_view": "drawn"}, None),
        ("text_entity", "text entity, Setting 1", {**none, "model.text_entity": "named"}, None),
        (
            "text_entity_drawn",
            "text entity, Setting 2",
            {**none, "model.reference_view": "drawn", "model.text_entity": "drawn"},
            None,
        ),
        ("transformer_frozen", "transformer, frozen probes", frozen, 78.19),
        ("mlp", "MLP", {"model.crm": "mlp"}, 77.53),
        ("mlp_frozen", "MLP, frozen probes", {"model.crm": "mlp", **frozen}, 77.07),
        ("average", "average pool", {"model.crm": "average"}, 76.31),
        ("average_frozen", "average pool, frozen probes", {"model.crm": "average", **frozen}, 76.39),
        *(
            (f"depth_{n}", f"depth {n} instead of 2", {"model.crm_layers": n}, avg)
            for n, avg in ((1, 78.10), (3, 78.83), (4, 78.59))
        ),
        *(
            (f"probes_{n}", f"{n} probes", {"model.probe_tokens": n}, avg)
            for n, avg in ((2, 78.85), (8, 79.00), (16, 78.95), (32, 78.83))
        ),
        ("vector", "vector", {"model.modulation": "vector"}, 78.48),
    ]
    return [Row(name, label, dict(values), paper) for name, label, values, paper in settings]


def trials(rows: Sequence[Row], seeds: int, domains: Sequence[str]) -> list[Trial]:
    """Every training, a whole seed of the matrix after the other, so that an unfinished one says most."""
    return [
        Trial(row, seed, without)
        for seed in range(seeds)
        for row in rows
        for without in (sorted(domains) if row.crossed else [None])
    ]
