"""What a model needs besides time: multiply-adds, parameters, memory, and bytes on disk."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from surgeon.exclusive import one_at_a_time
from surgeon.tracing import Inputs, running


@dataclass(frozen=True)
class Footprint:
    """What one forward of a model needs.

    Attributes
    ----------
    macs:
        Multiply-adds of convolutions and matrix products; one multiply-add is 1.
    params:
        Parameters, tied ones once.
    weight_bytes:
        Bytes of all parameters and buffers, tied ones once.
    activation_bytes:
        Bytes of all tensors that the forward makes, together.
    peak_bytes:
        Most bytes of them that were alive at one time; on CUDA as its allocator counted them.
    file_bytes:
        Size of a plain safetensors file with the model's state dict.
    """

    macs: int
    params: int
    weight_bytes: int
    activation_bytes: int
    peak_bytes: int
    file_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """All of it, as values that JSON can hold."""
        return asdict(self)


@one_at_a_time
def footprint(model: nn.Module, example_inputs: Any) -> Footprint:
    """Run one forward, in eval and inference mode, and count.

    Raises
    ------
    InputError
        If `example_inputs` holds no tensor.
    """
    inputs = Inputs.of(example_inputs)
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    with torch.inference_mode(False), torch.no_grad():
        with running(model, inputs) as call, FlopCounterMode(display=False) as flops:
            call()
        made, peak = memory(model, inputs)
    return Footprint(
        flops.get_total_flops() // 2,
        sum(p.numel() for p in model.parameters()),
        sum(t.numel() * t.element_size() for t in tensors),
        made,
        peak,
        file_bytes(model),
    )


def memory(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """Bytes that one forward in eval mode makes, and the most of them alive at one time."""
    device = next((leaf.device for leaf in inputs.leaves() if isinstance(leaf, Tensor)), torch.device("cpu"))
    cuda = device.type == "cuda"
    before = 0
    with running(model, inputs) as call:
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        with _Storages(model, inputs) as storages:
            call()
    peak = torch.cuda.max_memory_allocated(device) - before if cuda else storages.peak
    return storages.made, peak


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Sees every new storage come and go."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        given = (*model.parameters(), *model.buffers(), *(x for x in inputs.leaves() if isinstance(x, Tensor)))
        self._known = {t.untyped_storage()._cdata for t in given}
        self.made = self.alive = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.made, self.alive = self.made + size, self.alive + size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


#: What safetensors calls number types, where it isn't three characters long.
_CODES = {torch.bfloat16: "BF16", torch.bool: "BOOL"}


def file_bytes(model: nn.Module) -> int:
    """Size of a safetensors file with every tensor of the state dict: 8 bytes, a header in JSON, the numbers."""
    header, offset = {}, 0
    tensors = model.state_dict(keep_vars=True)
    first = {id(t): name for name, t in reversed(tensors.items())}
    wide_first = sorted(first.values(), key=lambda name: (-tensors[name].element_size(), name))
    for name in wide_first:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES.get(tensor.dtype, "F32"),
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + (text + 7) // 8 * 8 + offset  # the header is filled up to a multiple of 8
