"""Statistics over channels that libraries take by hand, told to the tests' oracle: what each is over the kept ones.

The oracle knows torch's own norms. A module with an attribute ``silenced`` is asked for its output by that, with
the mask of the module's ``weight`` (see `tests.oracle`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

Truth = Callable[[Any, Tensor, Tensor], Tensor]


def tell_norms(model: nn.Module) -> None:
    """Give every module of a known kind its attribute ``silenced``."""
    for path, module in model.named_modules():
        name = type(module).__name__
        truth = KNOWN.get(name)
        if name in MAKERS:
            told: Any = module  # the attributes are ours
            told.masked_by = ".".join([*path.split(".")[:-1], MAKERS[name]])
        if truth is None and hasattr(module, "variance_epsilon"):  # transformers writes one for each model
            truth = next((own for ending, own in ENDINGS.items() if name.endswith(ending)), None)
        if truth is gated:
            module.register_forward_pre_hook(_note_gate, with_kwargs=True)
        if truth is not None:
            module.silenced = functools.partial(truth, module)


def mean_of(x: Tensor, mask: Tensor) -> Tensor:
    """The mean along the last axis, over the places that are kept."""
    return (x * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)


def rms(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Root-mean-square norm over the last axis."""
    square = mean_of(x.square(), mask)
    epsilon = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    result: Tensor = norm.weight * x * (square + epsilon).rsqrt()
    return result


def rms_of_heads(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Llama 4's, without a weight, over each head's channels; all heads lose the same ones."""
    kept = mask.view(-1, x.shape[-1])[0]
    square = mean_of(x.square(), kept)
    result: Tensor = x * (square + norm.eps).rsqrt()
    return result


def _note_gate(norm: Any, args: Any, kwargs: Any) -> None:
    norm.gate = args[1] if len(args) > 1 else kwargs.get("gate")


def gated(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Of state-space models: multiplied by a gate, then a root-mean-square norm of each group of channels."""
    x = x if norm.gate is None else x * functional.silu(norm.gate)
    rows, kept = (part.view(*part.shape[:-1], -1, norm.group_size) for part in (x, mask))
    square = mean_of(rows.square(), kept)
    result: Tensor = norm.weight * (rows * (square + norm.variance_epsilon).rsqrt()).flatten(-2)
    return result


def layer_norm(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Over the last axis, without bias, written out."""
    mean = mean_of(x, mask)
    variance = mean_of((x - mean).square(), mask)
    result: Tensor = norm.weight * (x - mean) * (variance + norm.variance_epsilon).rsqrt()
    return result


def layer_norm_around_one(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Nemotron's: its weight is what it is above one."""
    mean = mean_of(x, mask)
    variance = mean_of((x - mean).square(), mask)
    result: Tensor = (norm.weight + 1) * (x - mean) * (variance + norm.eps).rsqrt() + norm.bias
    return result


def by_deviation(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """timm's SimpleNorm over the last axis: divided by the standard deviation, which is taken without bias."""
    mean = mean_of(x, mask)
    variance = ((x - mean).square() * mask).sum(-1, keepdim=True) / (mask.sum() - 1)
    result: Tensor = norm.weight * x * (variance + norm.eps).rsqrt()
    return result


def by_deviation_2d(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """The same over the channels of images."""
    return by_deviation(norm, x.movedim(1, -1), mask).movedim(-1, 1)


def response(norm: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Global response normalisation (ConvNeXt V2): each channel's norm over the mean of all channels' norms."""
    mask = mask.view(norm.wb_shape)
    own = x.norm(p=2, dim=norm.spatial_dim, keepdim=True)
    mean = (own * mask).sum(norm.channel_dim, keepdim=True) / mask.sum()
    weight, bias = norm.weight.view(norm.wb_shape), norm.bias.view(norm.wb_shape)
    result: Tensor = x + bias + weight * x * own / (mean + norm.eps)
    return result


def standardised(conv: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Convolution with scaled weight standardisation (Brock et al. 2021): each filter's statistics."""
    rows, kept = conv.weight.flatten(1), mask.flatten(1)
    count = kept.sum(1, keepdim=True).clamp(min=1)  # a filter that is gone has none
    mean = (rows * kept).sum(1, keepdim=True) / count
    rows = (rows - mean) * kept
    rows = rows * (rows.square().sum(1, keepdim=True) / count + conv.eps).rsqrt() * conv.gain.flatten(1) * conv.scale
    if hasattr(conv, "same_pad"):
        x = padded(conv, x)
    return functional.conv2d(
        x, rows.view_as(conv.weight), conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )  # fmt: skip


def padded(conv: Any, x: Tensor) -> Tensor:
    """TensorFlow's "same" padding."""
    if not conv.same_pad:
        return x
    sizes: list[int] = []
    for axis in (1, 0):
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        size, step = x.shape[2 + axis], conv.stride[axis]
        missing = max((-(-size // step) - 1) * step + reach + 1 - size, 0)
        sizes += [missing // 2, missing - missing // 2]
    return functional.pad(x, sizes)


#: Models that take a mean over what may be cut outside of any module of its own: surgeon's is over what is kept.
UNKNOWN: dict[str, str] = {
    "EfficientViM": "its head takes the mean over states",
    "Gemma3nForCausalLM": "its forward scales streams to the magnitude of the first",
}
#: Of modules with an attribute `variance_epsilon`, by how their classes' names end.
ENDINGS: dict[str, Truth] = {"RMSNorm": rms, "RMSNormGated": gated}
KNOWN: dict[str, Truth] = {
    "T5LayerNorm": rms,
    "Llama4TextRMSNorm": rms,
    "Cohere2LayerNorm": layer_norm,
    "NemotronLayerNorm1P": layer_norm_around_one,
    "Llama4TextL2Norm": rms_of_heads,
    "SimpleNorm": by_deviation,
    "SimpleNorm2d": by_deviation_2d,
    "GlobalResponseNorm": response,
    "ScaledStdConv2d": standardised,
    "ScaledStdConv2dSame": standardised,
}
#: Of norms without a weight: whose rows their channels are, from the module that the norm is in.
MAKERS: dict[str, str] = {"Llama4TextL2Norm": "q_proj.weight"}
