# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Compares the example commands with the real Python libraries.

    python run_peers.py --build build/release [--seed N] [--quick] [--only NAME]

Inputs are random: a fresh seed each time, printed so that a failure can be
repeated. One line for each check; exit code 1 where one failed. Needs the
packages of requirements.txt, those of requirements_tensorflow.txt in
build/tensorflow-venv, and about 3 GB of disk for the full-size files.
"""

import argparse
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

import check_batches  # noqa: F401 (registers its checks)
import check_dlpack  # noqa: F401
import check_dump  # noqa: F401
import check_formats  # noqa: F401
import check_network  # noqa: F401
import check_plan  # noqa: F401
import check_precision  # noqa: F401
import check_safetensors  # noqa: F401
import check_training  # noqa: F401
import check_usage  # noqa: F401
import check_vgg16  # noqa: F401
from support import CHECKS, Context


def run_check(name, options, seed):
    """Runs one check in a folder of its own; yields its results."""
    with tempfile.TemporaryDirectory(prefix="vggload-peers-", dir=options.scratch) as folder:
        # Each check has its own generator, so that --only repeats it exactly.
        context = Context(options.build, Path(folder), f"{seed}/{name}", options.quick)
        try:
            yield from CHECKS[name](context)
        except Exception:  # the other checks should still run
            yield "the check itself", traceback.format_exc(limit=-3).strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, required=True, help="build folder")
    parser.add_argument("--seed", type=int, help="repeat a run")
    parser.add_argument("--quick", action="store_true", help="fewer random cases")
    parser.add_argument("--only", action="append", choices=sorted(CHECKS), help="one check")
    parser.add_argument("--scratch", type=Path, help="where temporary files go")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)

    passed = failed = 0
    for name in options.only or CHECKS:
        start = time.monotonic()
        for label, problem in run_check(name, options, seed):
            now = time.monotonic()
            verdict = "FAIL" if problem else "ok  "
            tail = f"\n       {problem}" if problem else ""
            print(f"{verdict} {name}: {label} ({now - start:.1f} s){tail}", flush=True)
            start = now
            passed += not problem
            failed += bool(problem)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
