"""Module attributes that hold a width follow the weights: ``out_channels``, ``num_features``, ``groups``, ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

#: Called with the module and the shapes that its ``weight`` had and has.
Follow = Callable[[Any, Sequence[int], Sequence[int]], None]


def _convolution(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    lead, per_group = (1, 0) if module.transposed else (0, 1)
    depthwise = module.groups > 1 and (dense[1] == 1 if not module.transposed else dense[0] == module.groups)
    if depthwise and not module.transposed:
        module.groups = small[0] // (dense[0] // module.groups)
    elif depthwise:
        module.groups = small[0]
    if module.transposed:
        module.in_channels, module.out_channels = small[0], small[lead] * module.groups
    else:
        module.in_channels, module.out_channels = small[per_group] * module.groups, small[lead]


def _linear(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.out_features, module.in_features = small


def _batch_norm(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.num_features = small[0]


def _layer_norm(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.normalized_shape = tuple(small)


def _group_norm(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    if module.num_groups == dense[0]:
        module.num_groups = small[0]  # a group for every channel
    module.num_channels = small[0]


def _embedding(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.num_embeddings, module.embedding_dim = small


def _prelu(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.num_parameters = small[0]


def _attention(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.embed_dim = module.out_proj.weight.shape[0]
    module.head_dim = module.embed_dim // module.num_heads
    if module.in_proj_weight is not None:
        module.kdim = module.vdim = module.in_proj_weight.shape[1]
    else:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]


def _recurrent(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.input_size, state = module.weight_ih_l0.shape[1], module.weight_hh_l0.shape[1]
    if module.proj_size:
        module.proj_size, module.hidden_size = module.weight_hr_l0.shape
    else:
        module.hidden_size = state


def _cell(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


def _bilinear(module: Any, dense: Sequence[int], small: Sequence[int]) -> None:
    module.out_features, module.in1_features, module.in2_features = small


#: One entry per family of layers.
FOLLOWERS: dict[type[nn.Module], Follow] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    _NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
    nn.EmbeddingBag: _embedding,
    nn.Bilinear: _bilinear,
    nn.MultiheadAttention: _attention,
    nn.RNNBase: _recurrent,
    nn.RNNCellBase: _cell,
}


def followers(kind: type[nn.Module]) -> tuple[Follow, ...]:
    """What sets the width attributes of modules of this kind."""
    return tuple(update for family, update in FOLLOWERS.items() if issubclass(kind, family))


def follow(update: Follow, dense: nn.Module, small: nn.Module) -> None:
    """Set the width attributes of one module of the cut model from the shape of its weight."""
    before, after = _shapes(dense), _shapes(small)
    if before != after:
        update(small, before[0], after[0])


def _shapes(module: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of a layer's tensors, its weight's first (a parametrised one is no parameter of its own)."""
    tensors = [getattr(module, "weight", None), *module._parameters.values(), *module._buffers.values()]
    return [tuple(tensor.shape) for tensor in tensors if tensor is not None]
