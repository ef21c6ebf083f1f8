"""Single weights: masks on the least useful ones, values that many share, and compact files for both.

These save size, not time: dense kernels multiply by zeros, and look nothing up. Filters that are cut
(:func:`surgeon.prune`) save both; what is left of a model can go on into all of this.
"""

from surgeon.finegrained.counting import NonZero, nonzero
from surgeon.finegrained.healing import heal
from surgeon.finegrained.layers import LeftWhole
from surgeon.finegrained.packing import pack, unpack
from surgeon.finegrained.permanent import make_permanent, plain_copy
from surgeon.finegrained.sharing import LayerSharing, Sharing, SweepRow, share, sweep
from surgeon.finegrained.sparsity import LayerSparsity, Sparsity, sparsify

__all__ = [
    "LayerSharing", "LayerSparsity", "LeftWhole", "NonZero", "Sharing", "Sparsity", "SweepRow", "heal",
    "make_permanent", "nonzero", "pack", "plain_copy", "share", "sparsify", "sweep", "unpack",
]  # fmt: skip
