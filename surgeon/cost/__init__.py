"""What a width costs: multiply-adds, parameters, activations; seconds on this device."""

from surgeon.cost.counts import Cost

__all__ = ["Cost"]
