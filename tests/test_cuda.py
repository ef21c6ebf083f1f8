"""The same on a GPU: every network of the zoo cut as on the CPU, and each stage after a cut.

``SURGEON_TEST_DEVICE`` names another device (``cpu`` tries these tests themselves).
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import surgeon
from surgeon import finegrained, plots
from surgeon.criteria import CRITERIA
from surgeon.healing import LayerHealing
from surgeon.tracing import Inputs
from surgeon.tuning import Epoch
from tests import factories
from tests.test_checkpoint import Asking
from tests.test_families import FAMILIES, Family
from tests.test_finegrained_healing import images, network
from tests.test_healing_zoo import GAINS, drawn, error
from tests.test_zoo import build, inputs_of
from tests.zoo import ZOO

DEVICE = torch.device(os.environ.get("SURGEON_TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("a CUDA device is not there", allow_module_level=True)


def there(inputs: Inputs) -> Inputs:
    """The same on the device."""
    return inputs.map(lambda leaf: leaf.to(DEVICE))


def on_device(name: str) -> nn.Module:
    """A network of the zoo on the device; skipped where its own forward makes tensors on the CPU."""
    model, inputs = build(name).to(DEVICE), there(inputs_of(name))
    try:
        with torch.no_grad():
            model(*inputs.args, **inputs.kwargs)
    except RuntimeError as problem:
        if "same device" not in str(problem) and "cpu" not in str(problem).lower():
            raise
        pytest.skip("its own forward stays on the CPU")
    return model


@pytest.mark.parametrize("name", ZOO)
def test_cut_as_on_the_cpu(name: str) -> None:
    """The same plan, exact, every tensor where the model was."""
    options: dict[str, Any] = {"ratio": 0.5, "scope": "local", "criterion": "magnitude"}
    model = on_device(name)
    result = surgeon.prune(model, there(inputs_of(name)), **options)
    assert result.report.check is not None
    assert result.report.check.status == "passed", result.report.check
    assert {t.device.type for t in result.model.state_dict().values()} <= {DEVICE.type}
    other = surgeon.prune(build(name), inputs_of(name), **options, verify=False)
    assert {n: p.shape for n, p in result.model.named_parameters()} == {
        n: p.shape for n, p in other.model.named_parameters()
    }


@pytest.mark.parametrize("name", ZOO)
def test_healing_makes_nothing_worse(name: str) -> None:
    model = on_device(name)
    try:
        result = surgeon.prune(
            model, there(inputs_of(name)), ratio=0.5, scope="local", criterion="random", seed=0, verify=False
        )
    except surgeon.NothingToCutError:
        return
    rows: list[LayerHealing] = []
    batches = [there(batch) for batch in drawn(name)]
    before = error(model, result.model, batches)
    surgeon.heal(model, result.model, result.plan, batches, inputs_of=lambda batch: batch, on_layer=rows.append)
    assert all(0 <= row.healed <= min(row.sliced, row.shifted) for row in rows)
    if name in GAINS:
        assert any(row.healed < row.sliced for row in rows)
        assert error(model, result.model, batches) < before


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_are_cut_exactly(family: Family) -> None:
    model, x = family.build().to(DEVICE), family.example().to(DEVICE)
    result = surgeon.prune(model, x, ratio=0.5, scope="local", criterion="random")
    assert result.report.check is not None
    assert result.report.check.status == "passed", result.report.check


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_the_precision_of_the_user(name: str, dtype: torch.dtype) -> None:
    side = {"vit_b_16": 224, "swin_t": 224}.get(name, 64)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(DEVICE, dtype, memory_format=torch.channels_last)
    if name == "vit_b_16":
        nn.init.normal_(model.heads.head.weight)  # it begins with zeros: an output of zeros proves nothing
    x = torch.randn(2, 3, side, side).to(DEVICE, dtype, memory_format=torch.channels_last)
    result = surgeon.prune(model, x, ratio=0.5, scope="local", criterion="magnitude", round_to=8)
    assert result.report.check is not None
    assert result.report.check.status == "passed", result.report.check
    with torch.no_grad():
        assert bool(torch.isfinite(result.model(x)).all())


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "auto"])
def test_scores_are_those_of_the_cpu(criterion: str) -> None:
    scores = []
    for device in (torch.device("cpu"), DEVICE):
        model, batches = network().to(device), [(x.to(device), torch.zeros(len(x)).long().to(device)) for x in images()]
        graph = surgeon.channel_graph(surgeon.trace(model, batches[0][0]))
        scores.append(torch.as_tensor(surgeon.score(graph, criterion, batches, seed=3).raw))
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("level", ["bn", "bias", "gram", "lstsq"])
def test_healed_as_on_the_cpu(level: str) -> None:
    healed = []
    for device in (torch.device("cpu"), DEVICE):
        dense, batches = network().to(device), [x.to(device) for x in images()]
        result = surgeon.prune(dense, batches[0], ratio=0.5, criterion="magnitude", seed=0)
        small = surgeon.heal(dense, result.model, result.plan, batches, level)
        healed.append({name: value.cpu() for name, value in small.state_dict().items()})
    for name, value in healed[0].items():
        # images that are mixtures of a few pictures: what the weights are off by hardly shows in the outputs
        torch.testing.assert_close(healed[1][name], value, rtol=1e-6, atol=1e-6)


def test_automatic_steps_heal_and_save(tmp_path: Path) -> None:
    dense, batches = network().to(DEVICE), [x.to(DEVICE) for x in images()]
    result = surgeon.prune(
        dense, batches[0], max_macs=0.5, criterion="auto", dataloader=batches, heal="lstsq", steps=2, seed=0
    )
    file = tmp_path / "small.safetensors"
    surgeon.save(file, result.model, result.plan)
    again = surgeon.load(file, network).double().to(DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(again(batches[0]), result.model(batches[0]))


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_trains_distils_and_goes_on(precision: str, tmp_path: Path) -> None:
    if DEVICE.type == "cpu" and precision == "fp16":
        pytest.skip("no fp16 on the CPU")
    torch.manual_seed(0)
    dense = torchvision.models.resnet18(weights=None, num_classes=4).to(DEVICE, memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).to(DEVICE)
    small = surgeon.prune(dense, x, ratio=0.5, criterion="magnitude").model

    class Batches:
        """Four batches, made on the device."""

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(4):
                labels = torch.randint(0, 4, (16,))
                yield (torch.randn(16, 3, 32, 32) + labels[:, None, None, None]).to(DEVICE), labels.to(DEVICE)

    options: dict[str, Any] = {
        "teacher": dense,
        "ema": 0.9,
        "mixed_precision": precision,
        "clip": 1.0,
        "lr": 0.05,
        "seed": 1,
    }
    whole = surgeon.tune(copy.deepcopy(small), Batches(), Batches(), epochs=3, **options)
    assert all(math.isfinite(row.train_loss) for row in whole.history)
    assert whole.history[-1].train_loss < whole.history[0].train_loss
    kept: list[int] = []

    def stop(rows: tuple[Epoch, ...]) -> None:
        kept.append(len(rows))
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        surgeon.tune(
            copy.deepcopy(small), Batches(), Batches(), epochs=3, resume_dir=tmp_path, on_epoch=stop, **options
        )
    rest = surgeon.tune(copy.deepcopy(small), Batches(), Batches(), epochs=3, resume_dir=tmp_path, **options)
    assert len(rest.history) == 3
    assert rest.history[-1].train_loss == pytest.approx(whole.history[-1].train_loss, rel=0.05)


def off(dense: nn.Module, small: nn.Module, x: Tensor) -> float:
    """Summed squared difference of the outputs."""
    with torch.no_grad():
        return float((small(x) - dense(x)).square().sum())


def test_masks_and_shared_values_heal() -> None:
    dense, batches = network().to(DEVICE), [x.to(DEVICE) for x in images()]
    small = copy.deepcopy(dense)
    finegrained.sparsify(small, amount=0.5)
    before = off(dense, small, batches[0])
    finegrained.heal(dense, small, batches)
    assert off(dense, small, batches[0]) < before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_measured_by_the_devices_own_events(dtype: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval().to(DEVICE)
    x = torch.randn(2, 3, 64, 64).to(DEVICE)
    small = surgeon.prune(model, x, ratio=0.5, criterion="magnitude").model
    found = surgeon.measure.latency(
        {"dense": model, "small": small}, x, rounds=5, dtype=dtype, layout="channels_last", batch_size=16, fold_bn=True
    )
    assert all(row.median > 0 for row in found.latencies)
    assert surgeon.measure.footprint(small, x).macs < surgeon.measure.footprint(model, x).macs


def test_planned_by_the_time_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGEON_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = torchvision.models.vgg11_bn(weights=None, num_classes=10).features.eval().to(DEVICE)
    x = torch.randn(16, 3, 64, 64).to(DEVICE)
    result = surgeon.prune(model, x, max_macs=0.5, round_to="auto", criterion="magnitude")
    assert result.report.check is not None
    assert result.report.check.status == "passed"
    assert result.report.timing is not None
    assert result.report.timing.predicted["small"] < result.report.timing.predicted["dense"]


def test_a_file_is_opened_with_inputs_that_are_on_the_device(tmp_path: Path) -> None:
    model, x = Asking().eval().to(DEVICE), torch.randn(2, 3, 16, 16, device=DEVICE)
    result = surgeon.prune(model, x, filters=6, criterion="magnitude")
    surgeon.save(tmp_path / "s.safetensors", result.model, result.plan)
    found = surgeon.load(tmp_path / "s.safetensors", Asking, example_inputs=x)
    torch.testing.assert_close(found(x.cpu()), result.model(x).cpu())


def test_weights_become_a_picture(tmp_path: Path) -> None:
    plots.weight_histograms({"there": factories.small().to(DEVICE)}, tmp_path / "weights.png")
    assert (tmp_path / "weights.png").stat().st_size > 1000
