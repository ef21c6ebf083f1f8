"""Example inputs: what a forward is called with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from surgeon.contents import Contents
from surgeon.errors import InputError, PlanError
from surgeon.tracing.guard import QUANTISED

_RANDOM_SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword arguments of one call of the model's forward.

    Parameters
    ----------
    args, kwargs:
        Exactly what ``model(*args, **kwargs)`` takes; tensors may sit at any depth of tuples, lists, dicts
        and plain objects.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """Read what a user passes as ``example_inputs``: a tensor, a tuple of arguments, or an :class:`Inputs`.

        Raises
        ------
        InputError
            If there is no tensor in it.
        """
        if isinstance(example, cls):
            result = example
        elif isinstance(example, tuple):
            result = cls(example)
        else:
            result = cls((example,))  # a dict or a list is one positional argument, as in model(batch)
        if not any(isinstance(leaf, Tensor) for leaf in result.leaves()):
            raise InputError(
                f"example_inputs holds no tensor (it is {type(example).__name__}); pass what the forward takes: "
                "a tensor, a tuple of arguments, or surgeon.Inputs(args, kwargs)"
            )
        return result

    @classmethod
    def from_batch(cls, batch: Any, like: Inputs, inputs_of: Callable[[Any], Any] | None = None) -> Inputs:
        """What a model that takes inputs `like` these is given of a batch of a data loader.

        All of it, or, of ``(inputs, targets)``, the first part; or what `inputs_of` gives of it.
        """
        if inputs_of is not None:
            return cls.of(inputs_of(batch))
        return cls.taken(batch[0] if like.has_targets_in(batch) else batch, like)

    @classmethod
    def taken(cls, part: Any, like: Inputs) -> Inputs:
        """The part of a batch that the model takes, as it takes it: of a dict the entries that `like` names."""
        if isinstance(part, Mapping) and like.kwargs and not like.args:
            return cls((), {name: part[name] for name in like.kwargs if name in part})
        if len(like.args) == 1 and _is_listed(like.args[0]) and _is_listed(part):
            whole = isinstance(part, tuple) and len(part) == 1 and _is_listed(part[0])  # all arguments, in a tuple
            return cls(part if whole else (part,))  # a list of images is one argument
        return cls.of(tuple(part) if isinstance(part, list) else part)

    def has_targets_in(self, batch: Any) -> bool:
        """Whether a batch is ``(inputs, targets)``: a pair whose first part alone is what these inputs are.

        ``(x1, x2)`` is not, for a model of two arguments; ``((x1, x2), targets)`` is.
        """
        return isinstance(batch, tuple | list) and len(batch) == 2 and self._resembles(batch[0])

    def _resembles(self, part: Any) -> bool:
        if isinstance(part, Inputs):
            return True
        if not self.args:
            return isinstance(part, Mapping) and any(name in part for name in self.kwargs)
        if len(self.args) == 1:
            return _is_listed(part) or not _is_listed(self.args[0])
        alike = _is_listed(part) and len(part) == len(self.args)
        return alike and all(_is_listed(one) == _is_listed(own) for one, own in zip(part, self.args, strict=True))

    def leaves(self) -> list[Any]:
        """All leaves of args and kwargs, in a fixed order."""
        return self._contents().leaves

    def _contents(self) -> Contents:
        return Contents((self.args, dict(self.kwargs)))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for inputs of the same shapes, types and other arguments: they may share a recording."""
        return tuple((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in self.leaves())

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same structure with every tensor changed."""
        contents = self._contents()
        args, kwargs = contents.rebuilt([change(v) if isinstance(v, Tensor) else v for v in contents.leaves])
        return Inputs(args, kwargs)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Inputs:
        """Move to a device; `dtype` changes floating-point tensors only, and complex ones to its complex type."""

        def kind(t: Tensor) -> torch.dtype | None:
            return dtype.to_complex() if dtype and t.is_complex() else dtype if t.is_floating_point() else None

        return self.map(lambda t: t.to(device=device, dtype=kind(t)))

    def spec(self) -> Any:
        """A JSON-able description from which :meth:`from_spec` makes inputs of the same shapes."""
        return {"args": _describe(self.args), "kwargs": _describe(dict(self.kwargs))}

    @classmethod
    def outline(cls, spec: Any) -> Inputs:
        """The described arguments without what is in them: enough to tell what a model is given of a batch."""
        each: Iterator[Any] = (
            [] if isinstance(arg, Mapping) and "list" in arg else None for arg in spec["args"]["list"]
        )
        return cls(tuple(each), dict.fromkeys(spec["kwargs"]["dict"]))

    @classmethod
    def from_spec(cls, spec: Any, *, device: str = "cpu") -> Inputs:
        """Inputs of the described shapes: normal numbers for floats, zeros for integers, so any index is in range.

        Parameters
        ----------
        device:
            ``"meta"`` makes shapes without numbers, of any size; else all tensors together may have 2^27 elements.

        Raises
        ------
        PlanError
            If the description is malformed.
        """
        build = _Builder(device)
        try:
            return cls(tuple(build(spec["args"])), dict(build(spec["kwargs"])))
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as problem:
            raise PlanError(f"the plan's description of the example inputs can't be read: {problem}") from problem


def _is_listed(value: Any) -> bool:
    return isinstance(value, tuple | list)


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return {"list": [_describe(v) for v in value], "tuple": isinstance(value, tuple)}
    if isinstance(value, dict):
        return {"dict": {str(k): _describe(v) for k, v in value.items()}}
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}  # JSON has no word for it
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    return {"opaque": type(value).__name__}


class _Builder:
    """Makes what :func:`_describe` described; the description may come from anywhere."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._left = 2**48 if device == "meta" else 2**27
        self._generator = torch.Generator().manual_seed(_RANDOM_SEED)

    def __call__(self, spec: Any) -> Any:
        if "tensor" in spec:
            return self._tensor(spec)
        if "list" in spec:
            items = [self(item) for item in spec["list"]]
            return tuple(items) if spec.get("tuple") else items
        if "dict" in spec:
            return {key: self(item) for key, item in spec["dict"].items()}
        if "value" in spec:
            return spec["value"]
        if "number" in spec:
            return float(spec["number"])
        raise ValueError(f"an argument of type {spec.get('opaque', '?')} can't be made again; pass example_inputs")

    def _tensor(self, spec: Any) -> Tensor:
        shape, dtype = [int(size) for size in spec["tensor"]], getattr(torch, str(spec["dtype"]))
        if not isinstance(dtype, torch.dtype) or dtype in QUANTISED:
            raise TypeError(f"{spec['dtype']!r} is no dtype of plain numbers")
        self._left -= math.prod(shape)
        if any(size < 1 for size in shape) or self._left < 0:
            raise ValueError(f"a tensor of shape {shape} is out of bounds")
        if self._device == "meta":
            return torch.empty(shape, dtype=dtype, device="meta")
        if dtype.is_floating_point or dtype.is_complex:
            return torch.randn(shape, generator=self._generator).to(dtype)
        return torch.zeros(shape, dtype=dtype)
