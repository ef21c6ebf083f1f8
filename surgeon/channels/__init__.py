"""Channels: which positions of which tensors live and die together, and what may not be cut."""

from surgeon.channels.bundles import Bundle, Link
from surgeon.channels.even import Even
from surgeon.channels.graph import ChannelGraph, Group, Member, channel_graph
from surgeon.channels.labelling import Guide, Labels, Mismatch, label
from surgeon.channels.pins import Pin
from surgeon.channels.space import Space
from surgeon.channels.structure import Structure, analyse, layer_of

__all__ = [
    "Bundle", "ChannelGraph", "Even", "Group", "Guide", "Labels", "Link", "Member", "Mismatch", "Pin", "Space",
    "Structure", "analyse", "channel_graph", "label", "layer_of",
]  # fmt: skip
