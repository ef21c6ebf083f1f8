"""Networks that a good tool cuts as declared and surgeon doesn't yet, each with what is missing."""

from __future__ import annotations

_FFT = "a Fourier transform along space or tokens is pointwise in channels, but has no rule"
_NORM = "a p-norm over channels is a sum over what is kept, but pins"
_PATCHES = "im2col and col2im move places of each channel, but have no rule"
_ROTARY = "rotations couple the halves or pairs of a head; heads or pairs could go"
_CROSS = "at larger ratios the heads aren't bound to the width, and everything stays"
_TURNED = "transpose_, in place, has no rule"
_STATE = "a state of zeros made in the forward should follow the width"

PENDING: dict[str, str] = {
    "AttentionBert": "three numbers in attributes must change together",
    "AttentionHeadsMinusOne": "the embedding is pinned along with the heads",
    "BagOfWords": "the bag's features stay",
    "BilinearForm": "_trilinear has no rule",
    "ConvGru": _STATE,
    "CosineAttention": _NORM,
    "CosineClassifier": _NORM,
    "CosineSimilarity": _NORM,
    "Deformable": "deform_conv2d has no rule",
    "EncoderDecoder": _TURNED,
    "FourierMixer": _FFT,
    "FusedFlattenedHeads": "heads inside the batch axis",
    "GlobalFilter": _FFT,
    "GraphConvolution": "index_add has no rule",
    "GruLayer": _TURNED,
    "GruTwoLayersBothWays": "the sizes of both directions must change together",
    "Im2Col": _PATCHES,
    "ImageToSequence": "at some ratios the directions' sizes aren't bound, and everything stays",
    "Involution": _PATCHES,
    "LstmBothWays": "at some ratios the directions' sizes aren't bound, and everything stays",
    "LstmProjectedTwice": "cut exactly, but one product isn't compared",
    "LstmWithState": _STATE,
    "MultiQuery": "one key head for all, split by attributes",
    "NetVlad": _NORM,
    "OrthogonalHouseholder": "cut exactly, but one product isn't compared",
    "PackedSequence": "packing has no rule",
    "PartialConvolution": "the part that is convolved and the rest could follow two attributes",
    "Prototypes": "cdist has no rule",
    "RegionHead": "roi_align has no rule",
    "RnnRelu": "the sizes of both layers must change together",
    "RnnTanh": _TURNED,
    "RotaryChunked": _ROTARY,
    "RotaryComplex": _ROTARY,
    "RotaryHalves": _ROTARY,
    "RotaryPairs": _ROTARY,
    "Siamese": _NORM,
    "SoftmaxPooled": "parts of a view that meet in a sum could go together",
    "SpatialGating": "a convolution of one step passes its spatial axis on as it is",
    "SpectralConvolution": _FFT,
    "TemporalShift": "slices written in place, by a share of the shape",
    "TorchCrossAttention": _CROSS,
    "TorchCrossAttentionOwnWidths": _CROSS,
    "TorchCrossAttentionTokensFirst": _CROSS,
    "UnflattenedInferred": "the parts of an inferred view with means of their own",
    "UnitVectors": _NORM,
    "WeightStandardisedByNorm": "a batch norm of flattened weights is a statistic over in-channels",
    "WholeTransformer": "nn.Transformer checks d_model against what arrives",
    "WidthInConfig": "a width inside a dictionary that is an attribute",
}
