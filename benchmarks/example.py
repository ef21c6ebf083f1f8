"""What README's first command prints, kept for README: ``surgeon prune --model vgg16_bn --filters 512``.

Runs it in an empty folder and keeps its standard error, from the table of layers on, in
``benchmarks/results/example.json``. The file that it writes is thrown away.

    python benchmarks/example.py            # about 2 minutes on 2 cores
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

from common import arguments, environment, output_path, pick_device, run_main, say, write_json
from dogs_cats import executable

WORDS = ["prune", "--model", "vgg16_bn", "--filters", "512"]


def main() -> int:
    """Run the command; its exit code is ours."""
    options = arguments("What README's first command prints.", "example").parse_args()
    device = pick_device(options)
    words = [*WORDS, *(["--samples", "4"] if options.quick else [])]
    words += [] if options.device == "cpu" else ["--device", options.device]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run([executable(), *words], stderr=subprocess.PIPE, text=True, check=False, cwd=scratch)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.stderr.write(done.stderr)
        say(f"surgeon prune ended with exit code {done.returncode}; nothing written")
        return done.returncode
    record = {"environment": environment(device), "cli": "surgeon " + " ".join(words), "wall_s": round(seconds, 3)}
    write_json(output_path(options), record | {"lines": done.stderr.splitlines()})
    say(f"done in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    run_main(main)
