"""Networks that a good tool cuts as declared and surgeon doesn't yet, each with what is missing."""

from __future__ import annotations

_BOTH = "the sizes of all layers and directions follow one attribute: they aren't linked, and everything stays"
_CROSS = "at larger ratios the heads aren't bound to the width, and everything stays"
_HEADS = "at larger ratios the number of heads isn't bound, and everything stays"
_ROTARY = "rotations couple the pairs of a head; heads or pairs could go"

PENDING: dict[str, str] = {
    "Alibi": _HEADS,
    "GruTwoLayersBothWays": _BOTH,
    "ImageToSequence": _BOTH,
    "LstmBothWays": _BOTH,
    "LstmProjectedTwice": "cut exactly, but one product isn't compared",
    "OrthogonalHouseholder": "cut exactly, but one product isn't compared",
    "PackedSequence": "packing has no rule",
    "QkRmsNormed": "the size that nn.RMSNorm holds isn't changed with the heads",
    "RotaryComplex": _ROTARY,
    "RotaryPairs": _ROTARY,
    "SpatialGating": "a convolution of one step passes its spatial axis on as it is",
    "T5Bias": _HEADS,
    "TemporalShift": "slices written in place, by a share of the shape",
    "TorchCrossAttentionOwnWidths": _CROSS,
    "TorchCrossAttentionTokensFirst": _CROSS,
    "UnflattenedInferred": "a mean over places of one channel keeps channels apart",
    "WholeTransformer": "nn.Transformer checks d_model against what arrives",
}
