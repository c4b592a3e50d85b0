"""Tables of text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Rows as lines with their columns under each other, two spaces apart; the columns `right` end at the right."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def size(count: int | None) -> str:
    """Bytes as people read them: 812 B, 3.4 MB, 1.2 GB."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def age(days: float | None) -> str:
    """An age as people read it: 5 min, 3 h, 12 days."""
    if days is None:
        return ""
    if days * 24 < 1:
        return f"{max(0, round(days * 1440))} min"
    return f"{days * 24:.0f} h" if days < 2 else f"{days:.0f} days"
