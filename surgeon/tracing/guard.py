"""What may be traced, and leaving it exactly as it was."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from surgeon.errors import ModelError
from surgeon.tracing.keeping import Kept
from surgeon.tracing.members import modules, named_modules, named_parameters

#: Types of numbers with a scale beside them.
QUANTISED = frozenset({torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4})


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` wrappers."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def check_model(model: Any) -> nn.Module:
    """Unwrap `model` and refuse what can't be cut.

    Raises
    ------
    ModelError
        For a ScriptModule, a quantised or a lazily initialised model, or something that is no module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    inner = unwrap(model)
    for name, module in named_modules(inner):
        _check_module(name or type(module).__name__, module)
    return inner


def _check_module(name: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(f"{name} is a ScriptModule, whose forward is compiled: prune the eager model, then script it")
    if "quantized" in type(module).__module__:
        raise ModelError(f"{name} ({type(module).__name__}) is quantised: prune the float model, then quantise it")
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ModelError(
                f"{name}.{key} is not initialised yet (a lazy module): run the model once on real inputs, then prune it"
            )
        if tensor is not None and tensor.dtype in QUANTISED:
            raise ModelError(f"{name}.{key} is quantised ({tensor.dtype}): prune the float model, then quantise it")
    for key, value in {**vars(module), **module._parameters, **module._buffers}.items():
        if isinstance(value, Tensor):
            _check_layout(f"{name}.{key}", value, stored=key not in vars(module))


def _check_layout(name: str, tensor: Tensor, *, stored: bool) -> None:
    kind = str(tensor.layout).removeprefix("torch.")
    if kind.startswith("sparse") and stored:
        raise ModelError(
            f"{name} is stored with the weights and sparse ({kind}), which their files can't hold: give it to the "
            f"forward as an input, or keep it as an attribute that is no buffer"
        )
    if kind.startswith("sparse") and kind != "sparse_coo":
        raise ModelError(
            f"{name} is sparse ({kind}) in a way that torch can't copy: keep it in the form of to_sparse_coo(), or "
            f"give it to the forward as an input"
        )


_P = ParamSpec("_P")
_R = TypeVar("_R")


def outside_inference_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run `function` outside a caller's ``inference_mode``, whose tensors could be neither scored nor trained."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return run


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Run the body with the model in eval mode; restore every module's attributes and the RNG afterwards.

    A forward that stores activations on ``self``, fills lists and dicts that it or its hooks hold, or registers hooks
    leaves nothing behind. In-place writes to parameters, buffers and inputs are held off by the recorder.
    """
    parts = modules(model)
    with put_back(parts, (parameter for _, parameter in named_parameters(model))):
        set_mode(model, False)
        _keep_quiet(parts)
        yield


@contextlib.contextmanager
def put_back(parts: Iterable[nn.Module], tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore, when the body ends, what :class:`Kept` knows of, and the RNG of the CPU and of the tensors' GPUs."""
    kept = Kept(parts)
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        kept.restore()


def _keep_quiet(parts: Iterable[nn.Module]) -> None:
    """Graph modules print a traceback of their own when they fail, as trials do; without it, the error says it all."""
    for module in parts:
        if isinstance(module, fx.GraphModule):
            module.__dict__["_wrapped_call"] = nn.Module.__call__


def set_mode(model: nn.Module, training: bool) -> None:
    """Eval mode; or train mode for the modules that steer (those with children), with all layers still in eval.

    Flags are set one by one: exported modules refuse ``eval()``, and overrides of ``train()`` may do more than that.
    """
    for module in modules(model):
        # a norm that holds its activation is a layer all the same
        module.training = training and bool(module._modules) and not isinstance(module, _NormBase)


@contextlib.contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Run the body with every module in train or eval mode; each gets its own mode back.

    Flags are set one by one: exported modules refuse ``train()``, and overrides of it may do more than that.
    """
    saved = [(module, module.training) for module in modules(model)]
    try:
        for module, _ in saved:
            module.training = training
        yield
    finally:
        for module, mode in saved:
            module.training = mode


@contextlib.contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Composite operators run as their parts: no fused attention, no fused LSTM, no inference mode, no gradients."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # oneDNN fuses whole LSTMs; it is left on for all other models, whose convolutions would crawl without it
    fused = torch._C._get_mkldnn_enabled()  # the public flags() also sets TF32 and warns where there is none
    recurrent = any(isinstance(m, nn.LSTM) for m in modules(model))
    # cuDNN has batch norms and recurrent layers of its own, which no other device knows
    tuned = torch._C._get_cudnn_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(fused and not recurrent)
        torch._C._set_cudnn_enabled(False)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            yield
    finally:
        torch._C._set_cudnn_enabled(tuned)
        torch._C._set_mkldnn_enabled(fused)
        torch.backends.mha.set_fastpath_enabled(fast)


#: What tells a tensor's device, memory or numbers.
_ASKED = ("device", "is_cuda", "is_cpu", "is_meta", "is_mps", "is_xpu", "is_xla", "is_mkldnn")
_LOOKS = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in _ASKED),
        Tensor.get_device, Tensor.type, Tensor.stride, Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage,
        Tensor.__repr__, Tensor.__format__,
    }
)  # fmt: skip


class Blind(TorchFunctionMode):
    """Stops a forward that looks at its device or memory: it might go another way on its own."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _LOOKS:
            raise RuntimeError("the forward looks where its tensors are")
        return func(*args, **(kwargs or {}))
