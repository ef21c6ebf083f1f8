"""``surgeon.tune``: single steps by hand, which epoch stays, and options that are refused."""

from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name
from torch import nn

import surgeon
import surgeon.iteration.running
from surgeon.errors import TuningError
from surgeon.tuning import distillation_loss, evaluate
from surgeon.tuning.averaging import Average
from tests.tuned import ONE, X, Y, line, loader, net, same, tune

# --- one step, by hand


def test_one_step_of_sgd_with_label_smoothing() -> None:
    x, y = ONE
    by_hand = line()
    logs = F.log_softmax(by_hand(x), 1)
    loss = -(0.9 * logs[[0, 1], y] + 0.1 * logs.mean(1)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert by_hand.weight.grad is not None
    expected = by_hand.weight.detach() - 0.1 * (by_hand.weight.grad + 0.01 * by_hand.weight.detach())
    model = line()
    tuned = surgeon.tune(
        model, [ONE], epochs=1, lr=0.1, momentum=0.5, weight_decay=0.01, schedule="constant", label_smoothing=0.1
    )
    assert torch.allclose(model.weight, expected, atol=1e-7)
    assert tuned.history[0].train_loss == pytest.approx(float(loss.detach()))
    assert tuned.history[0].lr == 0.1
    assert (tuned.best_epoch, tuned.model) == (1, model)


def test_one_step_of_distillation() -> None:
    x, y = ONE
    teacher = nn.Linear(2, 3)
    by_hand = line()
    scores, wanted = by_hand(x), teacher(x).detach()
    p, q = (wanted / 2).softmax(1), (scores / 2).softmax(1)
    soft = 4 * (p * (p / q).log()).sum(1).mean()
    assert torch.allclose(distillation_loss(scores, wanted, 2.0), soft, atol=1e-6)
    loss = 0.25 * F.cross_entropy(scores, y) + 0.75 * soft
    loss.backward()
    assert by_hand.weight.grad is not None
    model = line()
    before = copy.deepcopy(teacher)
    tuned = surgeon.tune(
        model, [ONE], epochs=1, lr=0.1, weight_decay=0, schedule="constant", teacher=teacher, temperature=2.0,
        teacher_weight=0.75,
    )  # fmt: skip
    assert torch.allclose(model.weight, by_hand.weight - 0.1 * by_hand.weight.grad, atol=1e-6)
    assert tuned.history[0].train_loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert same(before, teacher)
    assert teacher.training
    assert teacher.weight.grad is None


def test_the_average_of_two_steps() -> None:
    layer = line()
    start = layer.weight.detach().clone()
    average = Average(layer, 0.999)
    with torch.no_grad():
        layer.weight.add_(1)
    average.update(layer)
    first = 2 / 11 * start + 9 / 11 * (start + 1)  # d = min(0.999, (1 + 1) / (10 + 1))
    assert torch.allclose(average.tensors["weight"], first)
    with torch.no_grad():
        layer.weight.add_(1)
    average.update(layer)
    assert torch.allclose(average.tensors["weight"], 3 / 12 * first + 9 / 12 * (start + 2))
    own = layer.weight.detach().clone()
    with average.applied(layer):
        assert torch.allclose(layer.weight, 3 / 12 * first + 9 / 12 * (start + 2))
    assert torch.equal(layer.weight, own)


def test_the_average_is_what_stays() -> None:
    model, plain = line(), line()
    start = plain.weight.detach().clone()
    surgeon.tune(plain, [ONE], epochs=1, lr=0.5, schedule="constant")
    surgeon.tune(model, [ONE], epochs=1, lr=0.5, schedule="constant", ema=0.1)
    assert torch.allclose(model.weight, 0.1 * start + 0.9 * plain.weight, atol=1e-7)


def test_the_gradient_is_clipped_to_its_norm() -> None:
    model, start = line(), line()
    surgeon.tune(model, [ONE], epochs=1, lr=1.0, weight_decay=0, schedule="constant", clip=1e-3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), start.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_per_example_is_averaged_and_forward_loss_takes_any_batch() -> None:
    one, other, third = line(), line(), line()
    surgeon.tune(one, [ONE], epochs=1, lr=0.1)
    surgeon.tune(other, [ONE], epochs=1, lr=0.1, loss_fn=lambda o, t: F.cross_entropy(o, t, reduction="none"))
    batches = [{"x": ONE[0], "y": ONE[1]}]
    surgeon.tune(third, batches, epochs=1, lr=0.1, forward_loss=lambda m, b: F.cross_entropy(m(b["x"]), b["y"]))
    assert torch.allclose(one.weight, other.weight)
    assert torch.equal(one.weight, third.weight)


def test_gradients_from_before_count_for_nothing() -> None:
    one, other = line(), line()
    other(ONE[0]).sum().backward()
    for model in (one, other):
        surgeon.tune(model, [ONE], epochs=1, lr=0.1)
    assert torch.equal(one.weight, other.weight)


def test_compiled_models_graphs_and_other_grad_modes_train_alike() -> None:
    plain, compiled, quiet, still = net(), net(), net(), net()
    surgeon.tune(plain, loader(), epochs=1)
    wrapper: Any = torch.compile(compiled, backend="eager")
    assert surgeon.tune(wrapper, loader(), epochs=1).model is wrapper
    with torch.no_grad():
        surgeon.tune(quiet, loader(), epochs=1)
    with torch.inference_mode():
        surgeon.tune(still, loader(), epochs=1)
    assert all(same(plain, other) for other in (compiled, quiet, still))
    graph = surgeon.prune(net().eval(), X[:2], ratio=0.3, criterion="magnitude", as_graph=True).model
    before = copy.deepcopy(graph)
    surgeon.tune(graph, loader(), epochs=1)
    assert not same(graph, before)


def test_frozen_parameters_and_modes_stay() -> None:
    model = net()
    model.first.requires_grad_(False)
    model.norm.eval()
    before = model.first.weight.detach().clone()
    surgeon.tune(model, loader(), epochs=1)
    assert torch.equal(model.first.weight, before)
    assert [m.training for m in (model, model.norm, model.drop)] == [True, False, True]


# --- which epoch stays


def test_the_best_epoch_is_chosen_on_validation() -> None:
    model, seen = net(), []
    said = iter([0.2, 0.9, 0.4, 0.9])

    def metric(m: nn.Module) -> float:
        assert not m.training
        seen.append(copy.deepcopy(m.state_dict()))
        return next(said)

    tuned = surgeon.tune(model, loader(), epochs=4, lr=0.1, metric=metric)
    assert tuned.best_epoch == 2  # the first of equals
    assert [row.val_metric for row in tuned.history] == [0.2, 0.9, 0.4, 0.9]
    assert all(torch.equal(a, b) for a, b in zip(seen[1].values(), model.state_dict().values(), strict=True))


def test_the_best_epoch_has_the_best_accuracy_then_the_least_loss() -> None:
    model = net()
    tuned = surgeon.tune(model, loader(), loader(shuffle=False), epochs=6, lr=0.3)
    ranks = [(row.val_accuracy or 0.0, -(row.val_loss or 0.0)) for row in tuned.history]
    assert tuned.best_epoch == 1 + ranks.index(max(ranks))
    found = evaluate(model, loader(shuffle=False))
    assert found.loss == pytest.approx(tuned.history[tuned.best_epoch - 1].val_loss)
    assert found.accuracy == tuned.history[tuned.best_epoch - 1].val_accuracy


def test_a_validation_that_gives_no_number_never_wins() -> None:
    said = iter([float("nan"), 0.1, float("nan")])
    assert surgeon.tune(net(), loader(), epochs=3, metric=lambda _: next(said)).best_epoch == 2


def test_evaluation_is_a_mean_over_examples() -> None:
    model = net().eval()
    found = evaluate(model, loader(7, shuffle=False))  # the last batch is smaller
    with torch.no_grad():
        assert found.loss == pytest.approx(float(F.cross_entropy(model(X), Y)), rel=1e-5)
        assert found.accuracy == float((model(X).argmax(1) == Y).float().mean())


# --- bad input


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"epochs": -1}, "epochs=-1: expected a whole number"),
    "lr": ({"lr": 0}, "lr=0: expected a number above 0"),
    "lr text": ({"lr": "fast"}, "lr='fast'"),
    "schedule": ({"schedule": "sine"}, "schedule='sine': expected one of"),
    "optimizer": ({"optimizer": "adam"}, "optimizer='adam': expected 'sgd', 'adamw'"),
    "smoothing": ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
    "ema": ({"ema": 1.0}, "ema=1.0: expected a decay"),
    "precision": ({"mixed_precision": "fp8"}, "mixed_precision='fp8'"),
    "precision here": ({"mixed_precision": "fp16", "device": "cpu"}, "mixed_precision='fp16'"),
    "two losses": ({"loss_fn": F.cross_entropy, "forward_loss": lambda m, b: m(b)}, "exclude each other"),
    "smooth own": ({"loss_fn": F.cross_entropy, "label_smoothing": 0.1}, "belongs to cross entropy"),
    "teacher": ({"teacher": nn.Linear(2, 4)}, r"the teacher's scores are \(2, 4\), the model's \(2, 3\)"),
    "stranger": ({"optimizer": torch.optim.SGD([nn.Parameter(torch.ones(5))])}, "would train what nothing reads"),
    "loss": ({"loss_fn": lambda o, t: o}, r"the loss of a batch is \(2, 3\)"),
    "not finite": ({"loss_fn": lambda o, t: o.sum() * math.nan}, "the loss is not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_told(case: str) -> None:
    given, message = REFUSED[case]
    with pytest.raises(TuningError, match=message):
        tune(line(), [ONE], **{"epochs": 1, **given})


@pytest.mark.parametrize(
    ("batches", "message"),
    [([], "gave no batch in epoch 1"), ([ONE[0]], "expected .inputs, targets."), (iter([ONE]), "no batch in epoch 2")],
)
def test_bad_loaders_are_told(batches: Any, message: str) -> None:
    with pytest.raises(TuningError, match=message):
        surgeon.tune(line(), batches, epochs=2)


def test_nothing_trainable_is_told() -> None:
    with pytest.raises(TuningError, match="no parameter of the model requires a gradient"):
        surgeon.tune(line().requires_grad_(False), [ONE], epochs=1)


def test_the_callers_random_numbers_stay() -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    surgeon.tune(net(), loader(), epochs=1)
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002


def test_runs_with_another_precision_follow_each_other() -> None:
    for precision in (None, "bf16", "no", "bf16"):
        tuned = surgeon.tune(net(), loader(), epochs=1, mixed_precision=precision)
        assert all(p.dtype == torch.float32 for p in tuned.model.parameters())


def test_importing_the_library_loads_no_accelerate() -> None:
    code = "import sys, surgeon; print('accelerate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
