"""Compact files: the same weights to the bit, masks and codebooks in place, forged files refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import surgeon
from surgeon import finegrained
from surgeon.checkpoint import read_header
from surgeon.errors import CheckpointError
from tests import factories
from tests.test_coding import same_bits, tensors

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
DATA = [(X + step, torch.arange(2)) for step in range(2)]


def small() -> nn.Module:
    torch.manual_seed(0)
    return factories.small().eval()


def masked(model: nn.Module) -> None:
    finegrained.sparsify(model, 0.7)


def shared(model: nn.Module) -> None:
    finegrained.share(model, 4)


def both(model: nn.Module) -> None:
    masked(model)
    shared(model)


@pytest.mark.parametrize("treat", [masked, shared, both])
@pytest.mark.parametrize("factory", [factories.small, factories.tied])
@pytest.mark.parametrize("tuned", [False, True])
def test_a_model_comes_back_to_the_bit(
    factory: Callable[[], nn.Module], treat: Callable[[nn.Module], None], tuned: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = factory().eval()
    treat(model)
    if tuned:
        surgeon.tune(model, DATA, epochs=1)
    state = finegrained.plain_copy(model).state_dict()
    finegrained.pack(tmp_path / "p", model)
    back = finegrained.unpack(tmp_path / "p", factory)
    for opened in (surgeon.load(tmp_path / "p", factory), finegrained.plain_copy(back)):
        found = opened.state_dict()
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert not tensor.is_floating_point() or same_bits(found[name], tensor), name
        assert torch.equal(opened(X), model(X))
    assert torch.equal(back(X), model(X))
    assert sorted(name for name, _ in back.named_parameters()) == sorted(name for name, _ in model.named_parameters())


@given(tensors(), st.sampled_from(["plain", "masked", "shared"]))
@settings(deadline=None, max_examples=60)
def test_any_weights_come_back_to_the_bit(tmp_path_factory: pytest.TempPathFactory, tensor: Tensor, treat: str) -> None:
    flat = tensor.reshape(1, -1)
    model = nn.Sequential(nn.Linear(flat.shape[1], 1, dtype=flat.dtype))
    model[0].weight.data = flat.clone()
    fit = bool(flat.isfinite().all()) and bool(flat.any())
    if treat == "masked" and fit:
        finegrained.sparsify(model, 0.5)
    if treat == "shared" and fit:
        finegrained.share(model, 5)
    wanted = finegrained.plain_copy(model).get_parameter("0.weight").detach()
    path = tmp_path_factory.mktemp("any") / "p"
    finegrained.pack(path, model)

    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(flat.shape[1], 1))

    assert same_bits(surgeon.load(path, factory).get_parameter("0.weight").detach(), wanted)
    back = finegrained.unpack(path, factory)
    assert same_bits(finegrained.plain_copy(back).get_parameter("0.weight").detach(), wanted)


def test_training_goes_on_where_it_was(tmp_path: Path) -> None:
    model = small()
    both(model)
    finegrained.pack(tmp_path / "p", model)
    back = finegrained.unpack(tmp_path / "p", factories.small)
    for each in (model, back):
        surgeon.tune(each, DATA, epochs=1, optimizer="adamw")
    assert torch.allclose(back.eval()(X), model.eval()(X), atol=1e-6)


def test_a_mask_that_saves_nothing_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    finegrained.sparsify(model, threshold=float(model.get_parameter("0.weight").detach().abs().min()))
    finegrained.pack(tmp_path / "p", model)
    back = finegrained.unpack(tmp_path / "p", lambda: nn.Sequential(nn.Linear(3, 2)))
    assert int(back.get_buffer("0.weight_mask").sum()) == 5


def test_the_model_that_is_packed_stays_as_it_is(tmp_path: Path) -> None:
    model = small()
    masked(model)
    model(X).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finegrained.pack(tmp_path / "p", model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_it_is_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300, bias=False))
    plain = 4 * 300 * 300
    finegrained.sparsify(model, 0.9)
    finegrained.pack(tmp_path / "masked", model)
    finegrained.share(model, 15)
    finegrained.pack(tmp_path / "shared", model)
    masked_bytes, shared_bytes = ((tmp_path / name).stat().st_size for name in ("masked", "shared"))
    assert masked_bytes < 0.13 * plain
    assert shared_bytes < 0.035 * plain


def test_a_cut_model_goes_on_and_its_file_opens_as_any_other(tmp_path: Path) -> None:
    result = surgeon.prune(small(), X, filters=6, criterion="magnitude", verify=False)
    surgeon.save(tmp_path / "cut", result.model, result.plan)
    model = surgeon.load(tmp_path / "cut", factories.small)
    both(model)
    finegrained.pack(tmp_path / "p", model, result.plan)
    back = surgeon.load(tmp_path / "p", factories.small)
    assert torch.equal(back(X), model(X))
    assert read_header(tmp_path / "p").plan.removed == result.plan.removed


def test_a_graph_opens_without_its_class(tmp_path: Path) -> None:
    result = surgeon.prune(small(), X, filters=6, criterion="magnitude", verify=False, as_graph=True)
    both(result.model)
    outputs = result.model(X)
    finegrained.pack(tmp_path / "p", result.model, result.plan)
    assert torch.equal(surgeon.load(tmp_path / "p")(X), outputs)
    assert torch.equal(finegrained.unpack(tmp_path / "p")(X), outputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small().to(dtype)
    both(model)
    finegrained.pack(tmp_path / "p", model)
    back = surgeon.load(tmp_path / "p", factories.small)
    assert same_bits(
        back.get_parameter("second.weight").detach(),
        finegrained.plain_copy(model).get_parameter("second.weight").detach(),
    )


def test_nan_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match=r"head\.weight holds NaN"):
        finegrained.pack(tmp_path / "p", factories.not_a_number())
    assert (tmp_path / "p").read_bytes() == b"precious"


# ---------------------------------------------------------------- forged


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = small()
    masked(model)
    finegrained.share(model, {"head": 4})
    finegrained.pack(tmp_path / "p", model)
    return tmp_path / "p"


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    with safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata())
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    header = json.loads(metadata["surgeon"])
    change(header, stored)
    save_file(stored, path, metadata={"surgeon": json.dumps(header)})


def test_the_fixture_holds_both_forms(file: Path) -> None:
    kinds = {name: form.kind for name, form in read_header(file).coded.items()}
    assert (kinds["first.weight"], kinds["head.weight"]) == ("sparse", "shared")
    forge(file, lambda *_: None)
    assert isinstance(surgeon.load(file, factories.small), nn.Module)


def _flip(stored: dict[str, Tensor]) -> None:
    stored["second.weight#mask"][20] ^= 255


def _cut(stored: dict[str, Tensor], name: str) -> None:
    stored[name] = stored[name][:-1].clone()


FORGED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], object], str]] = {
    "no object": (lambda h, _: h.update(coded=[]), "coded"),
    "no form": (lambda h, _: h["coded"].update({"first.weight": 3}), "first.weight"),
    "another shape": (lambda h, _: h["coded"]["first.weight"].update(shape=[8, 3, 9]), r"has shape \[8, 3, 9\]"),
    "larger than the memory": (lambda h, _: h["coded"]["first.weight"].update(shape=[2**39]), "times as many"),
    "larger than the model": (lambda h, _: h["coded"]["first.weight"].update(shape=[8, 3, 3, 300]), "expected"),
    "an unknown tensor": (lambda h, s: _rename(h, s, "third.weight"), "third.weight|first.weight"),
    "a part is missing": (lambda _, s: s.pop("first.weight#mask"), "first.weight#mask"),
    "a part of another type": (lambda _, s: s.update({"first.weight#mask": torch.zeros(4)}), "expected a row of U8"),
    "a part too many": (lambda _, s: s.update({"first.weight#more": torch.zeros(4)}), "first.weight#more"),
    "a tensor twice": (lambda _, s: s.update({"first.weight": torch.zeros(8, 3, 3, 3)}), "twice"),
    "flipped bits": (lambda _, s: _flip(s), "second.weight"),
    "values cut short": (lambda _, s: _cut(s, "first.weight#values"), "stored"),
    "a codebook cut short": (lambda _, s: _cut(s, "head.weight#codebook"), "head"),
}


def _rename(header: dict[str, Any], stored: dict[str, Tensor], name: str) -> None:
    header["coded"][name] = header["coded"].pop("first.weight")
    for part in ("mask", "values"):
        stored[f"{name}#{part}"] = stored.pop(f"first.weight#{part}")


@pytest.mark.parametrize("name", FORGED)
def test_forged_files_are_refused(name: str, file: Path) -> None:
    change, told = FORGED[name]
    forge(file, change)
    for opener in (surgeon.load, finegrained.unpack):
        with pytest.raises(CheckpointError, match=told):
            opener(file, factories.small)


def test_a_truncated_file_is_refused(file: Path) -> None:
    data = file.read_bytes()
    for size in (0, 7, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            finegrained.unpack(file, factories.small)
