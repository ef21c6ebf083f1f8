"""A model without numbers, and where its numbers are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from surgeon.errors import CheckpointError, ModelError
from surgeon.streaming.shards import Shards
from surgeon.tracing import named_tensors

__all__ = ["Read", "Weights", "empty_model"]


def empty_model(factory: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model on the meta device, in eval mode, and the buffers that it makes for itself.

    Ties stay: what one module takes from another has no numbers by then, and is left as it is. (Under
    ``accelerate.init_empty_weights`` each would get a tensor of its own, and under ``torch.device("meta")`` the buffers
    would have no numbers either.)

    Raises
    ------
    ModelError
        If the factory gives no module.
    """
    with _parameters_without_numbers():
        model = factory()
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory gave {type(model).__name__}, expected a torch.nn.Module")
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.device.type != "meta"}
    known = {id(buffer): buffer.to("meta") for buffer in buffers.values()}
    for module in model.modules():
        for name, own in module._buffers.items():
            if own is not None:
                module._buffers[name] = known.get(id(own), own)
    return model.eval(), buffers


@contextlib.contextmanager
def _parameters_without_numbers() -> Iterator[None]:
    """In the body every parameter that this thread's modules get is moved to the meta device."""
    own = threading.get_ident()

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:  # noqa: ARG001
        if parameter is None or parameter.device.type == "meta" or threading.get_ident() != own:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(hook)  # type: ignore[arg-type]  # what it gives is taken
    try:
        yield
    finally:
        handle.remove()


class Weights(Mapping[str, Tensor]):
    """The numbers of a model's parameters and buffers, by their first names in the model, each read when asked for.

    Parameters
    ----------
    model:
        On the meta device, or any other.
    shards:
        Where its weights are; tied ones under one of their names, or under each.
    buffers:
        Those that the model makes for itself.

    Attributes
    ----------
    stored:
        Under which names of the shards each is found.

    Raises
    ------
    CheckpointError
        If a parameter isn't in the shards, or is of another shape there.
    """

    def __init__(self, model: nn.Module, shards: Shards, buffers: Mapping[str, Tensor]) -> None:
        self.shards, self._buffers = shards, buffers
        self.stored: dict[str, list[str]] = {}
        first = {id(tensor): name for name, tensor in named_tensors(model).items()}
        for name, tensor in _all_names(model):
            if name in shards:
                self.stored.setdefault(first[id(tensor)], []).append(name)
        self._check(model)

    def _check(self, model: nn.Module) -> None:
        folder = self.shards.folder
        for name, tensor in named_tensors(model).items():
            for stored in self.stored.get(name, ()):
                shape, _ = self.shards.shapes[stored]
                if shape != tensor.shape:
                    raise CheckpointError(f"{folder}: {stored} is {tuple(shape)}, the model's {tuple(tensor.shape)}")
        for name, _ in model.named_parameters():
            if name not in self.stored:
                raise CheckpointError(f"{folder}: the model's {name} isn't there; give the weights of this very model")

    def __getitem__(self, name: str) -> Tensor:
        if name in self.stored:
            return self.shards[self.stored[name][0]]
        return self._buffers[name]

    def __contains__(self, name: object) -> bool:
        return name in self.stored or name in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.stored, *self._buffers]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _all_names(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by all of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


class Read(Mapping[str, Tensor]):
    """Tensors of these names, each made when it is asked for, and not kept."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a mapping would make the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
