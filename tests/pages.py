"""Facts for pages: as large, as long-named and as hostile as a report can be."""

from __future__ import annotations

from typing import Any

import surgeon
from surgeon.report import Report

#: Names that would do harm, or break a page, if they were put into it as they are.
HOSTILE = (
    "<script>document.title='broken in'</script>",
    'a"><img src=x onerror="document.title=\'broken in\'">',
    "'];document.title='broken in';//",
    "{{ 7 * 7 }}",
    "very.long." + "name." * 30 + "conv",
    "weights.ünïcödé.层",
)


def facts(report: Report | None = None, **more: Any) -> dict[str, Any]:
    """What :func:`surgeon.pages.render` takes."""
    return {
        "title": "a network, cut by surgeon",
        "report": None if report is None else report.to_dict(),
        "measured": [],
        "accuracy": {},
        "about": {"made": "2026-01-01 00:00 UTC", "command": "surgeon prune --report report.html"},
        **more,
    }


def measured(*names: str) -> list[dict[str, Any]]:
    """Two results of ``surgeon bench``, one of them noisy."""
    speed_up = {"name": names[-1], "base": names[0], "ratio": 2.1, "low": 1.9, "high": 2.2}
    rows = [
        {
            "name": name,
            "median": 0.1 / (i + 1),
            "low": 0.09 / (i + 1),
            "high": 0.15 / (i + 1),
            "noisy": bool(i),
            "speed_up": speed_up if i else None,
            "params": 1000,
        }
        for i, name in enumerate(names)
    ]
    layers = [{"name": "first", "seconds": dict.fromkeys(names, 0.001)}]
    return [
        {"device": "cpu", "threads": 2, "batch_size": batch, "backend": "eager", "models": rows, "layers": layers}
        for batch in (1, 8)
    ]


def everything(report: Report) -> dict[str, Any]:
    """All parts that a page can have."""
    healed = tuple(surgeon.LayerHealing(f"{row.name}.weight", 0.3, 0.2, 0.01) for row in report.layers)
    values = report.to_dict() | {
        "healing": [vars(row) for row in healed],
        "warnings": ["RANDOM WEIGHTS"],
        "notes": ["ranked on 96 images"],
        "seconds": {"trace": 0.5, "score": 12.25},
    }
    return facts(measured=measured("dense of small.safetensors", "small.safetensors"), accuracy={"dense": 0.918}) | {
        "report": values
    }


def hostile(report: Report) -> dict[str, Any]:
    """The same facts with every name, note and reason replaced by one of :data:`HOSTILE`."""
    names = iter(HOSTILE * 10_000)
    known: dict[str, str] = {}

    def swap(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: swap(v, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [swap(item, key) for item in value]
        if isinstance(value, str) and key not in ("status", "device"):
            return known.setdefault(value, next(names))
        return value

    given = everything(report)
    swapped = swap(given)
    assert isinstance(swapped, dict)
    return swapped
