"""What ``surgeon demo`` does, step by step, each beside the call that does it in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import surgeon
from surgeon import data, models
from surgeon.measure import Comparison, latency
from surgeon.tuning import evaluate

from .output import Watch, emit_json, say, size
from .runtime import about
from .training_options import percent

#: Digits are so large, and shifted by so much in training: they have an up and a left.
_MADE, _AUGMENT = data.Preprocess(8, 8), data.Augment(crop=1, flip=False)
#: Share that validates; images that rank and heal; images at a time in training and in front of the clock.
_HELD_OUT, _RANKED, _BATCH = 0.1, 512, 64


def run(folder: Path, model: str, max_macs: str | float, epochs: int, seed: int, *, as_json: bool) -> None:
    """The whole command; arguments are its options."""
    folder.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads would wait for each other: the network is that small
    try:
        demo = _Demo(folder, model.removeprefix("cifar:"), max_macs, epochs, seed)
        demo.train()
        result = demo.cut()
        demo.tune(result.model)
        timed = demo.time(result.model)
        demo.keep(result, timed)
    finally:
        torch.set_num_threads(threads)
    if as_json:
        emit_json(demo.facts(result, timed))


def _step(title: str, *calls: str) -> None:
    """Say what comes, and what one would write for it."""
    say(f"\n{title}")
    for call in calls:
        say(f"  >>> {call}")


class _Demo:
    """The images, the whole network, and the accuracy on the test images of all that is made of it."""

    def __init__(self, folder: Path, model: str, max_macs: str | float, epochs: int, seed: int) -> None:
        self.folder, self.model, self.max_macs, self.epochs, self.seed = folder, model, max_macs, epochs, seed
        self.accuracy: dict[str, float] = {}
        self._seeded = f", seed={seed}" if seed else ""
        _step(
            "The images: handwritten digits of 8x8 pixels, which come with scikit-learn",
            f'images = surgeon.data.open_data("digits").with_validation({_HELD_OUT}{self._seeded})',
            "made, augment = surgeon.data.Preprocess(8, 8), surgeon.data.Augment(crop=1, flip=False)",
            f"train = surgeon.data.batches(images.train, made, {_BATCH}, augment)",
            f"val, test = (surgeon.data.batches(part, made, {_BATCH}) for part in (images.val, images.test))",
        )
        self.images = images = data.open_data(data.DIGITS).with_validation(_HELD_OUT, seed)
        assert images.val is not None
        assert images.test is not None
        say(
            f"  {len(images.train):,} to train on, {len(images.val)} to choose the best epoch by, {len(images.test)} "
            "kept apart for the figures below"
        )
        self._train = data.batches(images.train, _MADE, _BATCH, _AUGMENT)
        self._val = data.batches(images.val, _MADE, _BATCH)
        self._test = data.batches(images.test, _MADE, _BATCH)
        self._image = next(iter(self._test))[0][:1]
        torch.manual_seed(seed)
        self.dense = models.build(self.model)

    def _judge(self, name: str, model: nn.Module) -> str:
        """Measure and remember what share of the test images is right."""
        accuracy = evaluate(model, self._test).accuracy
        assert accuracy is not None
        self.accuracy[name] = accuracy
        return percent(accuracy)

    def train(self) -> None:
        """A baseline."""
        _step(
            f"The network: {self.model}, trained from random weights",
            f"torch.manual_seed({self.seed})",
            f'dense = surgeon.models.build("{self.model}")',
            f"surgeon.train(dense, images, epochs={self.epochs}, lr=0.05, preprocess=made, augment=augment, "
            f"batch_size={_BATCH}{self._seeded})",
            "surgeon.evaluate(dense, test).accuracy",
        )
        with Watch() as watch:
            surgeon.train(
                self.dense, self.images, epochs=self.epochs, lr=0.05, preprocess=_MADE, augment=_AUGMENT,
                batch_size=_BATCH, seed=self.seed, progress=watch,
            )  # fmt: skip
        say(f"  {self._judge('dense', self.dense)} of the test images right")

    def cut(self) -> surgeon.Result:
        """Rank, cut, check, heal."""
        _step(
            "The cut: the least useful filters go, and what reads them is fitted anew, without labels and training",
            "image = next(iter(test))[0][:1]",
            f"some = surgeon.data.batches(images.train.drawn({_RANKED}{self._seeded}), made, {_BATCH})",
            f"result = surgeon.prune(dense, image, max_macs={self.max_macs!r}, "
            f'criterion="auto", dataloader=some, heal="lstsq"{self._seeded})',
        )
        some = data.batches(self.images.train.drawn(_RANKED, self.seed), _MADE, _BATCH)
        with Watch() as watch:
            result = surgeon.prune(
                self.dense, self._image, max_macs=self.max_macs, criterion="auto", dataloader=some, heal="lstsq",
                seed=self.seed, progress=watch,
            )  # fmt: skip
        report, check = result.report, result.report.check
        assert check is not None
        say(
            f"  {report.filters_before} -> {report.filters_after} filters; {report.params_before:,} -> "
            f"{report.params_after:,} parameters; {report.macs_before / 1e6:.2f} -> {report.macs_after / 1e6:.2f} "
            "million multiply-adds an image"
        )
        say(
            f"  check {check.status}: at {check.nodes} places the small network computes what the whole one computes "
            f"without those filters (largest error {check.error:.0e})"
        )
        plain = self._judge("cut", surgeon.rewrite(self.dense, result.plan))
        say(f"  {plain} right as cut, {self._judge('cut and healed', result.model)} healed")
        return result

    def tune(self, small: nn.Module) -> None:
        """Fine-tune."""
        epochs = max(1, self.epochs // 2)
        _step(
            "Fine-tuning: the whole network teaches the small one",
            f"surgeon.tune(result.model, train, val, epochs={epochs}, lr=0.01, teacher=dense{self._seeded})",
        )
        with Watch() as watch:
            surgeon.tune(
                small, self._train, self._val, epochs=epochs, lr=0.01, teacher=self.dense, seed=self.seed,
                progress=watch,
            )  # fmt: skip
        say(f"  {self._judge('fine-tuned', small)} right; the whole network: {percent(self.accuracy['dense'])}")

    def time(self, small: nn.Module) -> Comparison:
        """Measure, in turn."""
        _step(
            f"The clock: {_BATCH} images at a time, both networks in turn",
            f'timed = surgeon.measure.latency({{"dense": dense, "small": result.model}}, image, batch_size={_BATCH})',
        )
        both = {"dense": self.dense, "small": small}
        with Watch() as watch:
            timed = latency(both, self._image, batch_size=_BATCH, progress=watch)
        before, after = timed.latencies
        ratio = timed.speed_up("small", "dense")
        say(
            f"  {1e3 * before.median:.2f} -> {1e3 * after.median:.2f} ms: {ratio.ratio:.2f} times as fast (95 %: "
            f"{ratio.low:.2f} to {ratio.high:.2f}; {timed.threads} thread)"
        )
        return timed

    def keep(self, result: surgeon.Result, timed: Comparison) -> None:
        """Write the file and the page."""
        file, page = self.folder / "small.safetensors", self.folder / "report.html"
        _step(
            "What is kept: the small network with its plan, nothing pickled, and a report",
            f'origin = {{"surgeon": "{self.model}", "kwargs": {{"num_classes": 10}}, "preprocess": made.to_dict()}}',
            f'surgeon.save("{file}", result.model, result.plan, origin=origin)',
            'both = {"dense": dense, "fine-tuned": result.model}',
            "accuracy = {name: surgeon.evaluate(model, test).accuracy for name, model in both.items()}",
            f'surgeon.write_report("{page}", result, accuracy=accuracy, measured=[timed.to_dict("dense")])',
        )
        origin = {
            "surgeon": self.model, "kwargs": {"num_classes": 10}, "preprocess": _MADE.to_dict(),
            "weights": "trained by surgeon demo", "classes": list(self.images.classes),
        }  # fmt: skip
        surgeon.save(file, result.model, result.plan, origin=origin)
        surgeon.write_report(
            page, result, title=f"{self.model} on handwritten digits", accuracy=self.accuracy,
            measured=[timed.to_dict("dense")], about=about(),
        )  # fmt: skip
        say(f"  written: {file} ({size(file.stat().st_size)}); open it with surgeon.load({str(file)!r})")
        say(f"  written: {page}; open it in a browser")

    def facts(self, result: surgeon.Result, timed: Comparison) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "model": self.model, "accuracy": self.accuracy, "report": result.report.to_dict(),
            "measured": timed.to_dict("dense"), "folder": str(self.folder),
        }  # fmt: skip
