"""Whether a cell that is run again gives the stored numbers."""

import math
from statistics import mean
from typing import Any

from .cells import Cell


def compare(cell: Cell, stored: dict[str, Any] | None, again: dict[str, Any]) -> dict[str, Any]:
    """Mean loss by level and checkpoint, stored and again, and the greatest difference."""
    if stored is None:
        raise SystemExit(f"{cell.key}: no stored result to compare with; run the cell without --repeat first")
    rows, greatest = [], 0.0
    for old, new in zip(stored["validation"], again["validation"], strict=True):
        for level, values in old["by_root"].items():
            before, now = mean(values), mean(new["by_root"][level])
            greatest = max(greatest, abs(now - before))
            rows.append({"slices": old["slices"], "level": level, "stored": round(before, 5), "again": round(now, 5)})
    if not math.isfinite(greatest):
        raise SystemExit(f"{cell.key}: losses are not finite")
    return {"key": cell.key, "greatest_difference": round(greatest, 6), "losses": rows}
