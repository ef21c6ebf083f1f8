"""Latencies as bars with their quartiles, on one scale for all that were measured together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["bars"]


def bars(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is drawn of one result of ``surgeon bench``, or of ``Comparison.to_dict()``: lengths in percent.

    The scale ends at the longest upper quartile.
    """
    rows = [dict(row) for row in result.get("models", result.get("latencies", ()))]
    longest = max((row["high"] for row in rows), default=1.0) or 1.0
    conditions = {**result.get("conditions", {}), **{k: v for k, v in result.items() if not isinstance(v, list | dict)}}
    return {
        "heading": _heading(conditions),
        "conditions": conditions,
        "rows": [_row(row, longest) for row in rows],
        "layers": result.get("layers", []),
        "noisy": any(row["noisy"] for row in rows),
    }


def _row(row: dict[str, Any], longest: float) -> dict[str, Any]:
    scaled = {f"{key}_share": round(100 * row[key] / longest, 2) for key in ("median", "low", "high")}
    return {"speed_up": None, "base": None, "difference": None, **row, **scaled}


def _heading(conditions: Mapping[str, Any]) -> str:
    parts = [str(conditions.get("device", "?"))]
    if "batch_size" in conditions:
        parts.append(f"batch size {conditions['batch_size']}")
    if "threads" in conditions:
        parts.append(f"{conditions['threads']} thread{'s' if conditions['threads'] != 1 else ''}")
    parts += [str(conditions[key]) for key in ("backend", "dtype", "layout") if conditions.get(key)]
    if conditions.get("fold_bn"):
        parts.append("batch norms folded")
    return ", ".join(parts)
