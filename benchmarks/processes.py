"""Do two and four processes come to what one does? ResNet-20 on CIFAR-10, trained weights, gloo, one thread each.

Scores of criteria that look at data, on 128 training images in batches of 16; a cut to half of the MACs and the
least-squares healing of it; validation on 512 more; then 50 steps of training of the cut and healed network, from the
same weights everywhere, in batches of 16 without augmentation. What one process says stands against two and four: the
largest differences, relative to the largest number of each tensor; of the mean losses of epochs (10 steps), absolute.

It is trained in double precision, in single precision, and in single precision with SiLU in place of ReLU. A ReLU whose
input is within rounding of zero lets its gradient through in one sum and not in another; of the millions of activations
in 50 steps some are, and each changes the gradients below it by some thousandths of the largest, so that single
precision can't tell two right ways to add up from each other. In double precision none is, and SiLU has no such place.
The controls show it: one process against itself with the images of each batch in another order, four orders.

    python benchmarks/processes.py             # some minutes on two cores
    python benchmarks/processes.py --quick     # two processes alone
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from common import ROOT, Table, arguments, cifar10, output_path, pick_device, run_main, say, trained
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, default_collate

import surgeon
from surgeon.tuning import evaluate

CRITERIA = ("taylor", "taylor-gate", "taylor-weight", "fisher", "obs")
RANKED, BATCH, JUDGED, TRAINED, TRAIN_BATCH, STEPS = 128, 16, 512, 160, 16, 50
EPOCHS = STEPS * TRAIN_BATCH // TRAINED
#: Ways to train: type, what stands for ReLU, and in how many other orders one process trains as a control.
WAYS: dict[str, tuple[torch.dtype, Any, int]] = {
    "float64": (torch.float64, None, 1),
    "float32": (torch.float32, None, 4),
    "float32, SiLU": (torch.float32, functional.silu, 4),
}


def main() -> int:
    """Run the work in one process, then in more, and compare."""
    parser = arguments("One process against several.", "processes")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "RANK", "SIZE"), help="one process's work")
    options = parser.parse_args()
    if options.worker:
        worked(Path(options.worker[0]), int(options.worker[1]), int(options.worker[2]))
        return 0
    settings = {"criteria": list(CRITERIA), "ranked": RANKED, "batch": BATCH, "judged": JUDGED, "steps": STEPS,
                "train_batch": TRAIN_BATCH}  # fmt: skip
    table = Table.open(output_path(options), settings, pick_device(options), fresh=True)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepared(folder)
        for size in (1, 2) if options.quick else (1, 2, 4):
            start = time.perf_counter()
            spawned(folder, size)
            row = control(folder) if size == 1 else compared(folder, size)
            row["seconds"] = round(time.perf_counter() - start, 1)
            table.put("control" if size == 1 else str(size), row)
            say(f"{size}: {json.dumps(row)}")
    return 0


def prepared(folder: Path) -> None:
    """The images, read once."""
    device = torch.device("cpu")
    _, stats = trained("resnet20-cifar10", device)
    images = cifar10("train", stats, device, torch.arange(RANKED + JUDGED + TRAINED))
    save_file({"pixels": images.inputs, "labels": images.targets}, folder / "images")


def spawned(folder: Path, size: int) -> None:
    """Run the work in so many processes."""
    script = str(ROOT / "benchmarks" / "processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, script, "--worker", str(folder), str(rank), str(size)] for rank in range(size)]
    started = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait() for process in started] == [0] * size


def worked(folder: Path, rank: int, size: int) -> None:
    """The work of one process, written down."""
    torch.set_num_threads(1)
    if size > 1:
        limit = datetime.timedelta(minutes=20)
        dist.init_process_group("gloo", f"file://{folder}/meeting-{size}", limit, rank=rank, world_size=size)
    images = load_file(folder / "images")
    parts = [RANKED, JUDGED, TRAINED]
    ranked, judged, training = zip(*(torch.split(images[name], parts) for name in ("pixels", "labels")), strict=True)
    model, _ = trained("resnet20-cifar10", torch.device("cpu"))
    batches = list(zip(*(torch.split(part, BATCH) for part in ranked), strict=True))
    graph = surgeon.channel_graph(surgeon.trace(model, ranked[0][:2]))
    scores = surgeon.score_all(graph, CRITERIA, batches)
    cut = surgeon.prune(model, ranked[0][:2], max_macs=0.5, criterion="fisher", dataloader=batches, heal="lstsq")
    seen = evaluate(cut.model, DataLoader(TensorDataset(*judged), 128))
    tensors = {f"scores/{name}": torch.from_numpy(found.raw) for name, found in scores.items()}
    tensors |= {f"healed/{name}": tensor.clone() for name, tensor in cut.model.state_dict().items()}
    facts: dict[str, Any] = {"plan": cut.plan.to_json(), "loss": seen.loss, "accuracy": seen.accuracy}
    save_file(tensors, folder / f"{rank}-of-{size}.safetensors")
    # The same weights are trained everywhere, to the bit: what is compared is the training.
    found = load_file(folder / "0-of-1.safetensors")
    start = {name.removeprefix("healed/"): t for name, t in found.items() if name.startswith("healed/")}
    for name, (dtype, smooth, orders) in WAYS.items():
        for order in range(1 + (orders if size == 1 else 0)):
            with mock.patch.object(functional, "relu", smooth or functional.relu):
                facts[f"{name} {order}"] = losses(cut.model, start, training, dtype, order)
    (folder / f"{rank}-of-{size}.json").write_text(json.dumps(facts))


def losses(
    model: nn.Module, start: dict[str, Tensor], data: tuple[Tensor, ...], dtype: torch.dtype, order: int
) -> list[float]:
    """The mean loss of every epoch; `order` is how the images of each batch lie, 0 as the loader has them."""
    pixels, labels = data
    collate = _Permuted(order) if order else None
    loader = DataLoader(TensorDataset(pixels.to(dtype), labels), TRAIN_BATCH, shuffle=True, collate_fn=collate)
    model.load_state_dict(start)
    tuned = surgeon.tune(model.to(dtype), loader, epochs=EPOCHS, lr=0.01, schedule="constant", device="cpu")
    return [epoch.train_loss for epoch in tuned.history]


class _Permuted:
    """A batch of the same images in another order."""

    def __init__(self, seed: int) -> None:
        self._order = torch.randperm(TRAIN_BATCH, generator=torch.Generator().manual_seed(seed)).tolist()

    def __call__(self, items: list[Any]) -> Any:
        return default_collate([items[place] for place in self._order])


def control(folder: Path) -> dict[str, Any]:
    """One process against itself, with the images of each batch in other orders."""
    _, facts = _read(folder, 0, 1)
    return {
        "train_loss": {
            name: [_apart(facts[f"{name} {order}"], facts[f"{name} 0"]) for order in range(1, orders + 1)]
            for name, (_, _, orders) in WAYS.items()
        },
        "single_against_double": _apart(facts["float32 0"], facts["float64 0"]),
        "losses": facts["float64 0"],
    }  # fmt: skip


def compared(folder: Path, size: int) -> dict[str, Any]:
    """How far the processes are from one, and from each other."""
    one, facts = _read(folder, 0, 1)
    found = [_read(folder, rank, size) for rank in range(size)]
    far = dict.fromkeys(("scores", "healed"), 0.0)
    for name, tensor in one.items():
        part, scale = name.partition("/")[0], max(float(tensor.double().abs().max()), 1e-12)
        far[part] = max(far[part], *(float((t[name].double() - tensor.double()).abs().max()) / scale for t, _ in found))
    return {
        "same_plan": all(other["plan"] == facts["plan"] for _, other in found),
        "scores": far["scores"], "healed": far["healed"],
        "train_loss": {
            name: max(_apart(other[f"{name} 0"], facts[f"{name} 0"]) for _, other in found) for name in WAYS
        },
        "val_loss": max(abs(other["loss"] - facts["loss"]) for _, other in found),
        "same_accuracy": all(other["accuracy"] == facts["accuracy"] for _, other in found),
        "same_bits": all(torch.equal(found[0][0][name], t[name]) for t, _ in found for name in one),
    }  # fmt: skip


def _apart(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _read(folder: Path, rank: int, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    stem = folder / f"{rank}-of-{size}"
    return load_file(stem.with_suffix(".safetensors")), json.loads(stem.with_suffix(".json").read_text())


if __name__ == "__main__":
    run_main(main)
