"""Networks that a good tool cuts as declared and surgeon doesn't yet, each with what is missing."""

from __future__ import annotations

PENDING: dict[str, str] = {
    "LstmProjectedTwice": "cut exactly, but one product isn't compared",
    "OrthogonalHouseholder": "cut exactly, but one product isn't compared",
    "PackedSequence": "packing has no rule",
    "TemporalShift": "slices written in place, by a share of the shape",
}
