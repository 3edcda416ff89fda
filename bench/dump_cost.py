# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What `load_vgg16 --dump` adds to a load, of one FP32 checkpoint to FP16.

    python bench/dump_cost.py BUILD_FOLDER CHECKPOINT [ROUNDS]

Runs the command with and without, interleaved, as whole processes, and prints for 1 and 2
threads the medians, the median of what each pair differs by, and its share of the load's own
time (bar: 0.05). Everything is in it: the counting of health in the load, and the files.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main():
    build, path = Path(sys.argv[1]), sys.argv[2]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 41
    line = [build / "examples" / "load_vgg16", path, "--threads"]

    def wall(*options):
        begin = time.perf_counter()
        subprocess.run([*line, *options], check=True, capture_output=True)
        return time.perf_counter() - begin

    with tempfile.TemporaryDirectory() as folder:
        for threads in ("1", "2"):
            plain, dumped, loads = [], [], []
            for _ in range(rounds):
                plain.append(wall(threads))
                dumped.append(wall(threads, "--dump", folder))
                run = subprocess.run([*line, threads, "--json"], check=True, capture_output=True)
                loads.append(json.loads(run.stdout)["seconds"])
            added = statistics.median(b - a for a, b in zip(plain, dumped))
            load = statistics.median(loads)
            print(
                f"{threads} threads: {1e3 * statistics.median(plain):.1f} ms, with a dump"
                f" {1e3 * statistics.median(dumped):.1f} ms; added {1e3 * added:.2f} ms to a load of"
                f" {1e3 * load:.1f} ms: {added / load:.3f}"
            )


if __name__ == "__main__":
    main()
