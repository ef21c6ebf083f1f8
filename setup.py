"""The one thing that pyproject.toml can't say: packages found on disk, `cli/` among them as `surgeon_cli`."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["surgeon", "surgeon.*"]),
        "surgeon_cli",
        *(f"surgeon_cli.{name}" for name in find_packages("cli")),
    ]
)
