"""What a width costs: multiply-adds, parameters, activations; seconds on this device."""

from surgeon.cost.counts import Cost
from surgeon.cost.latency import Latency
from surgeon.cost.staircase import channel_step, find_step, steps_of
from surgeon.cost.tables import Place, Table, cache_folder, least_time, open_table

__all__ = [
    "Cost", "Latency", "Place", "Table", "cache_folder", "channel_step", "find_step", "least_time", "open_table",
    "steps_of",
]  # fmt: skip
