"""``train``: a baseline from scratch or from pretrained weights, with augmentation, and judged on data kept apart."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.checkpoint import save
from surgeon.data import Augment, Data, Preprocess, Split, batches
from surgeon.errors import CheckpointError, ModelError, SelectionError, TuningError
from surgeon.exclusive import one_at_a_time
from surgeon.files import locked
from surgeon.finegrained import plain_copy
from surgeon.jsonfiles import as_read, changed, read_file, write_file, write_lines
from surgeon.planning import Plan
from surgeon.processes import first, from_first, start
from surgeon.tracing import Inputs, check_model, in_mode
from surgeon.tuning import Epoch, Tuned, Validation, evaluate, tune
from surgeon.tuning.objectives import scores_of

__all__ = ["Row", "Trained", "train"]


@dataclass(frozen=True)
class Row:
    """One epoch of a phase: ``"frozen"`` (the head alone) or ``"all"``."""

    phase: str
    epoch: Epoch

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; accuracies are shares."""
        return {"phase": self.phase, **asdict(self.epoch)}


@dataclass(frozen=True)
class Trained:
    """What :func:`train` gives back.

    Attributes
    ----------
    model:
        The model that was passed, trained, with the weights that did best on the validation images.
    rows:
        One per epoch.
    best_epoch:
        Of the last phase.
    val, test:
        Loss, top-1 and top-5 of the final weights; `test` is None where the data has no test part.
    notes:
        What a run that went on should be told, as in :class:`surgeon.Tuned`.
    """

    model: nn.Module
    rows: tuple[Row, ...]
    best_epoch: int
    val: Validation
    test: Validation | None
    notes: tuple[str, ...] = ()


def train(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    frozen_epochs: int = 0,
    head: Iterable[str] | None = None,
    preprocess: Preprocess | None = None,
    augment: Augment | None = None,
    batch_size: int = 128,
    val_share: float = 0.1,
    workers: int = 0,
    directory: str | os.PathLike[str] | None = None,
    keep_epochs: Iterable[int] = (),
    origin: Mapping[str, Any] | None = None,
    on_epoch: Callable[[tuple[Row, ...]], None] | None = None,
    seed: int = 0,
    **tuning: Any,
) -> Trained:
    """Train `model` in place on the training images of `data`.

    The validation images choose the epoch whose weights stay; where `data` has none, `val_share` of the training images
    of each class are held out. Test images are looked at once, at the end. With a `directory` a run that was
    interrupted and is called again with the same arguments goes on from its last finished epoch.

    Parameters
    ----------
    model:
        Gives scores (N, classes) of images (N, C, H, W).
    data:
        From :func:`surgeon.data.open_data`.
    epochs:
        Passes over the training images with all parameters.
    frozen_epochs, head:
        So many epochs before them with the `head` alone: names of parameters; default: those of the module that holds
        the last one. What batch norms measure follows the new images.
    preprocess:
        Size and normalisation of the images; default: ImageNet's.
    augment:
        Random changes; default: crops and mirror images (:class:`surgeon.data.Augment`).
    batch_size, workers:
        Images at a time, and processes that read ahead.
    val_share:
        How much is held out for validation where `data` has no such part.
    directory:
        For the state, and ``metrics.jsonl`` with one line per epoch.
    keep_epochs, origin:
        Keep the weights after these epochs (0: before the first) in `directory` as ``epoch-N.safetensors``, which
        :func:`surgeon.load` opens; `origin` is where the model came from, as in :func:`surgeon.save`. What is cut later
        can be trained from them again (``rewind`` of :func:`surgeon.prune_and_tune`).
    on_epoch:
        Called with all rows so far after every epoch.
    seed:
        Of what is held out, the order of the images, their changes, dropout.
    tuning:
        Further arguments of :func:`surgeon.tune`: ``lr``, ``optimizer``, ``schedule``, ``label_smoothing``,
        ``progress`` ...

    Raises
    ------
    TuningError
        As :func:`surgeon.tune`; also if the model has not one output for each class.
    InputError
        If an image can't be read (before anything is trained, where its file is none), or nothing can be held out.
    CheckpointError
        If `directory` holds another run.
    BusyError
        If another run is at work there.
    """
    module = check_model(model)
    start()
    parts = data.checked().with_validation(val_share, seed)
    assert parts.val is not None
    keep = _Kept(module, directory, frozenset(keep_epochs), origin)
    run = _Run(
        module, parts, parts.val, preprocess or Preprocess(), augment or Augment(), batch_size=batch_size,
        workers=workers, directory=None if directory is None else Path(directory),
        on_epoch=on_epoch or (lambda _: None), seed=seed, tuning=tuning,
    )  # fmt: skip
    with locked(directory if first() else None):
        run.check({"epochs": epochs, "frozen_epochs": frozen_epochs, "val_share": val_share})
        if frozen_epochs:
            with _frozen(module, head):
                run.phase("frozen", frozen_epochs)
        keep(run.example, 0)
        tuned = run.phase("all", epochs, lambda epoch: keep(run.example, epoch))
        return run.judged(tuned)


class _Run:
    """The phases of one :func:`train`."""

    def __init__(
        self, model: nn.Module, data: Data, val: Split, preprocess: Preprocess, augment: Augment, batch_size: int,
        workers: int, directory: Path | None, on_epoch: Callable[[tuple[Row, ...]], None], seed: int,
        tuning: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.data, self.directory, self.seed, self.tuning = model, data, directory, seed, tuning
        self._train = batches(data.train, preprocess, batch_size, augment, workers=workers)
        self._val = batches(val, preprocess, batch_size, workers=workers)
        self._test = None if data.test is None else batches(data.test, preprocess, batch_size, workers=workers)
        self._on_epoch = on_epoch
        self.example = preprocess.normalise(torch.zeros(1, preprocess.channels, preprocess.size, preprocess.size))
        self._rows: list[Row] = []
        self._asked = {
            "data": data.name, "images": len(data.train), "classes": list(data.classes), "batch_size": batch_size,
            "preprocess": preprocess.to_dict(), "augment": asdict(augment), "seed": seed,
        }  # fmt: skip

    def check(self, options: Mapping[str, Any]) -> None:
        """What would fail after the first epoch fails now; and a directory belongs to one run."""
        _check_outputs(self.model, self._val, len(self.data.classes))
        if self.directory is None:
            return
        asked = as_read({**self._asked, **options})
        path = self.directory / "train.json"
        if not from_first(path.exists):
            if first():
                write_file(path, asked, indent=2)
            return
        _check_same(path, asked)

    def phase(self, name: str, epochs: int, keep: Callable[[int], None] | None = None) -> Tuned:
        """Train what requires a gradient; `keep` is called with the number of each finished epoch, before it counts."""
        before = list(self._rows)

        def finished(history: tuple[Epoch, ...]) -> None:
            self._rows = [*before, *(Row(name, epoch) for epoch in history)]
            if self.directory is not None and first():
                write_lines(self.directory / "metrics.jsonl", [row.to_dict() for row in self._rows])
            self._on_epoch(tuple(self._rows))

        folder = None if self.directory is None else self.directory / name
        tuned = tune(
            self.model, self._train, self._val, epochs=epochs, resume_dir=folder, seed=self.seed, on_epoch=finished,
            before_saving=keep, **self.tuning,
        )  # fmt: skip
        self._rows = [*before, *(Row(name, epoch) for epoch in tuned.history)]
        return tuned

    def judged(self, tuned: Tuned) -> Trained:
        """The final weights on what is kept apart."""
        progress = self.tuning.get("progress") or (lambda *_: None)
        progress("judge", 0, 1)
        val = evaluate(self.model, self._val)
        test = None if self._test is None else evaluate(self.model, self._test)
        progress("judge", 1, 1)
        if self.directory is not None and first():
            last = [{"phase": "final", "val": asdict(val), "test": None if test is None else asdict(test)}]
            write_lines(self.directory / "metrics.jsonl", [*(row.to_dict() for row in self._rows), *last])
        return Trained(self.model, tuple(self._rows), tuned.best_epoch, val, test, tuned.notes)


@dataclass(frozen=True)
class _Kept:
    """Writes the weights of chosen epochs to files."""

    model: nn.Module
    directory: str | os.PathLike[str] | None
    epochs: frozenset[int]
    origin: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        if self.epochs and self.directory is None:
            raise TuningError("keep_epochs needs a directory to keep the weights in")

    def __call__(self, example: Tensor, epoch: int) -> None:
        if epoch not in self.epochs or self.directory is None:
            return
        path = Path(self.directory) / f"epoch-{epoch}.safetensors"
        if not first() or (epoch == 0 and path.exists()):  # a run that goes on has trained weights in memory, maybe
            return
        model = plain_copy(self.model)  # without masks and codebooks, which a plain file has no place for
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        plan = Plan(type(model).__name__, {}, Inputs.of(example.to(device)).spec())
        save(path, model, plan, self.origin)


def _check_same(path: Path, asked: Mapping[str, Any]) -> None:
    saved = read_file(path, dict[str, Any], "give another folder")
    for name in changed(saved, asked):
        raise CheckpointError(
            f"{path}: its run has {name}={saved.get(name)!r}, this one {asked.get(name)!r}; resume with the same "
            "options, or give another folder"
        )


@one_at_a_time
def _check_outputs(model: nn.Module, loader: Iterable[Any], classes: int) -> None:
    images, _ = next(iter(loader))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with in_mode(model, False), torch.no_grad():
        scores = scores_of(model(images[:1].to(device)))
    if scores.shape[1:] != (classes,):
        raise TuningError(f"the model gives scores {tuple(scores.shape)} of an image, the data has {classes} classes")


@contextlib.contextmanager
def _frozen(model: nn.Module, head: Iterable[str] | None) -> Iterator[None]:
    """Only the head requires a gradient; afterwards what did before."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ModelError("the model has no parameters: there is nothing to train")
    chosen = {head} if isinstance(head, str) else set(head) if head is not None else _last(list(parameters))
    if unknown := chosen - parameters.keys():
        raise SelectionError(
            f"head: the model has no parameter {min(unknown)!r}; model.named_parameters() has the names"
        )
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in chosen)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


def _last(names: list[str]) -> set[str]:
    """Parameters of the module that holds the last one."""
    owner = names[-1].rpartition(".")[0]
    return {name for name in names if name.rpartition(".")[0] == owner}
