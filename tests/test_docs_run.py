"""What README, docs/ and every --help say to type is typed: shell commands and Python blocks run.

Large networks are replaced by small ones and long work by short, by the two tables below; the little that can't be run
here stands in a third, with the reason, and is read by the real parser all the same (tests/test_docs.py).
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from surgeon.streaming import SINGLE
from surgeon_cli import weights as sources
from tests.cli_run import commands, surgeon_cli
from tests.factories import Small
from tests.pictures import draw
from tests.test_cli_latency import pretend
from tests.test_streaming import Decoder

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: In commands: pattern -> replacement.
SHORTER_COMMANDS: tuple[tuple[str, str], ...] = (
    (r"(?<=[ =])(resnet18|resnet50|vgg16_bn)(?= |$)", "cifar:resnet20b-x0.1"),  # the dogs' and cats' sizes take minutes
    (r"cifar:resnet20(?= )", "cifar:resnet20b-x0.1"),
    (r"cifar:vgg7_bn(?= )", "cifar:vgg7_bn-x0.25"),
    (r"mypackage\.models:make", "tests.factories:two_classes"),
    (r"nets:make", "tests.factories:sized"),
    (r"decoder:make", "tests.test_docs_run:make_language_model"),
    (r"--ignore model\.embed_tokens", "--ignore embed"),
    (r"--data cifar10", "--data photos"),  # it isn't downloaded
    (r"--weights DEFAULT", "--weights none"),  # nor are these
    (r"--(|final-|frozen-)epochs \d+", r"--\1epochs 1"),
    (r"--filters 512", "--filters 3"),
    (r"--steps 5", "--steps 2"),
    (r"^surgeon demo$", "surgeon demo --model vgg7_bn-x0.25 --epochs 1"),
)

#: In Python blocks.
SHORTER_PYTHON: tuple[tuple[str, str], ...] = (
    (r"filters=512", "filters=3"),
    (r"epochs=\d+", "epochs=1"),
    (r"(steps|epochs_per_step|final_epochs)=\d+", r"\1=1"),
    (r"seeds=\(0, 1, 2\)", "seeds=(0,)"),
    (r'\("cubic", "one-shot"\)', '("one-shot",)'),
    (r'"cifar10"', '"digits"'),
    (r'"resnet20"', '"resnet20-x0.1"'),
    (r"Preprocess\(32, 32\)", "Preprocess(8, 8)"),
)

#: Commands that are read by the parser and not run, and why.
NOT_RUN: dict[str, str] = {
    "surgeon device": "takes a minute; tests/test_cli_latency.py runs it",
    "surgeon device --threads 1": "the same",
    "surgeon bench small.safetensors other.safetensors --against resnet50 --backend eager --backend compile --layers": (
        "compiles for minutes; tests/test_cli_bench.py does so once"
    ),
}


class LanguageModel(Decoder):
    """Takes what transformers' language models take."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(input_ids)


def make_language_model() -> nn.Module:
    return LanguageModel()


def shell_commands() -> Iterator[str]:
    """Every ``surgeon`` command of a shell block, once."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [part.strip() for line in lines for part in line.partition("  #")[0].split("&&")]
    yield from dict.fromkeys(line for line in found if line.startswith("surgeon "))


def examples() -> Iterator[str]:
    """The example of every command's --help."""
    for name in commands().list_commands(click.Context(commands())):
        command = commands().get_command(click.Context(commands()), name)
        assert command is not None
        found = re.search(r"Example: (surgeon .*)", command.help or "")
        assert found is not None, name
        yield found[1]


def python_blocks() -> list[Any]:
    return [
        pytest.param(code, id=f"{page.name}:{number}")
        for page in PAGES
        if page.name not in ("api.md", "extending.md")  # signatures; tests/test_extending.py
        for number, code in enumerate(
            re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        )
    ]


def shorter(text: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands of the documentation start from."""
    folder = tmp_path_factory.mktemp("docs")
    draw(folder / "photos" / "train", 10)
    draw(folder / "photos" / "test", 4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            "train --model cifar:resnet20b-x0.1 --data photos --epochs 1 --device cpu --output net.safetensors",
            "prune --model net.safetensors --ratio 0.3 --criterion magnitude --output small.safetensors",
            "sparsify --model small.safetensors --amount 0.5",
            "share --model small-sparse.safetensors -k 4",
            "prune --model tests.factories:two_classes --ratio 0.3 --image-size 16 --output make-pruned.safetensors",
            "demo --model vgg7_bn-x0.25 --epochs 1",
            "train --model tests.factories:sized --data photos --epochs 1 --output make-trained.safetensors",
            "prune --model make-trained.safetensors --factory tests.factories:sized --filters 3 --data photos",
        ):
            ran = surgeon_cli(*shlex.split(words))
            assert ran.code == 0, ran.err
        shutil.copy("net.safetensors", "resnet20-trained.safetensors")
        torch.save(Small(2).state_dict(), "trained.pt")
        torch.save(Small(5).state_dict(), "imagenet.pt")
        Path("llama").mkdir()
        save_file({name: tensor.clone() for name, tensor in LanguageModel().state_dict().items()}, f"llama/{SINGLE}")
        page = (ROOT / "docs" / "comparing.md").read_text(encoding="utf-8")
        toml = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
        shorter_toml = (
            (r'"taylor", "magnitude"', '"magnitude"'), (r", \{ max_macs = 0\.3 \}", ""), (r"\[0, 1, 2\]", "[0]"),
            (r"steps = 5", "steps = 1"), (r"epochs = 20", "epochs = 1"),
        )  # fmt: skip
        Path("grid.toml").write_text(shorter(toml, shorter_toml), encoding="utf-8")
        for folder_of_a_run in ("net", "make-trained"):
            shutil.rmtree(folder_of_a_run)
    return folder


@pytest.fixture(autouse=True)
def known_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time is planned with, a multiplication takes a microsecond."""
    pretend(monkeypatch, tmp_path / "cache", step=1)


@pytest.fixture
def inside(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder as the current one, and no network."""

    def reach(url: str) -> None:
        raise sources.Unreachable(f"no answer from {url}")

    monkeypatch.setattr(sources, "reach", reach)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("line", [*dict.fromkeys([*shell_commands(), *examples()])])
def test_a_command_runs(line: str, inside: Path) -> None:
    if line in NOT_RUN:
        pytest.skip(NOT_RUN[line])
    words = shlex.split(shorter(line, SHORTER_COMMANDS))[1:]
    before = stamps(inside)
    if "--resume" in words:  # what there is to go on with
        assert surgeon_cli(*(word for word in words if word != "--resume")).code == 0
    ran = surgeon_cli(*words)
    assert ran.code == 0, f"{' '.join(words)}\n{ran.err}"
    written, after = named_files(words, ran.err), stamps(inside)
    assert written or words[0] not in WRITERS or "--sweep" in words
    for name in written:
        assert after.get(inside / name, 0) > before.get(inside / name, 0), f"{name} wasn't written\n{ran.err}"


#: Commands that always write something, but for a sweep.
WRITERS = ("demo", "export", "prune", "report", "share", "shards", "sparsify", "train")
#: Options that name what to write.
FILES = ("--csv", "--dot", "--histograms", "--html", "--output", "--plot", "--report", "-o")


def named_files(words: list[str], told: str) -> set[str]:
    """What a command was asked to write, and what it says that it has written."""
    asked = {words[at + 1] for at, word in enumerate(words) if word in FILES}
    return asked | set(re.findall(r"^ *(?:written|report): ([^\s;]+)", told, re.MULTILINE))


def stamps(folder: Path) -> dict[Path, int]:
    """When each file was written; of a folder, when any file in it was."""
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    return {path: max(time for other, time in times.items() if other.is_relative_to(path)) for path in times}


def test_what_is_not_run_is_still_said_somewhere() -> None:
    assert set(NOT_RUN) <= {*shell_commands(), *examples()}


def namespace() -> dict[str, Any]:
    """What the blocks take for granted, by the names that they use."""
    torch.manual_seed(0)
    images, labels = torch.randn(24, 3, 16, 16), torch.arange(24) % 2
    loader = DataLoader(TensorDataset(images, labels), 8)
    dense = Small(2).eval()
    result = surgeon.prune(dense, images[:2], ratio=0.3, criterion="magnitude")
    compared = surgeon.measure.latency({"dense": dense, "small": result.model}, images[:2], rounds=2)
    return {
        "surgeon": surgeon, "model": dense, "dense": dense, "images": images[:2], "x": images[:2],
        "batches": list(loader), "train_loader": loader, "val_loader": loader, "test_loader": loader, "MyModel": make,
        "result": result, "small": result.model, "plan": result.plan, "comparison": compared,
        "optimizer": torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9),
    }  # fmt: skip


def make() -> nn.Module:
    return Small(2)


@pytest.mark.parametrize("code", python_blocks())
def test_a_python_block_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "from transformers" in code:
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    exec(compile(shorter(code, SHORTER_PYTHON), "docs", "exec"), namespace())
