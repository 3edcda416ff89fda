# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Loads a full-size VGG16 of every format, interleaved, against safetensors.

    python bench/formats.py BUILD_FOLDER FOLDER_FOR_FILES

Writes the files with the real libraries (tests/peers/writers.py) where they are
not there yet: 8 GB. Prints medians: seconds of the load as FP16, their ratio to
the safetensors load of the same round, the peak resident growth above the
destination, and the milliseconds of the whole command `inspect`, which only opens
the file.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "peers"))

ROUNDS = 9


def load(build, path, dtype):
    line = [str(build / "examples" / "load_vgg16"), str(path), "--dtype", dtype, "--json"]
    return json.loads(subprocess.run(line, check=True, capture_output=True).stdout)


def files(folder):
    """The list that writers.py prints, kept for the next time."""
    listed = folder / "files.txt"
    if not listed.exists():
        writers = Path(__file__).parent.parent / "tests" / "peers" / "writers.py"
        line = [sys.executable, str(writers), str(folder)]
        folder.mkdir(parents=True, exist_ok=True)
        listed.write_text(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    return dict(line.split("\t") for line in listed.read_text().splitlines())


def main():
    build, folder = Path(sys.argv[1]), Path(sys.argv[2])
    paths = files(folder)
    seconds = {name: [] for name in paths}
    ratios = {name: [] for name in paths}
    growth = dict.fromkeys(paths, 0)
    opened = {name: [] for name in paths}
    for _ in range(ROUNDS):
        base = None
        for name, path in paths.items():
            report = load(build, path, "f16")
            base = base or report["seconds"]
            seconds[name].append(report["seconds"])
            ratios[name].append(report["seconds"] / base)
            above = report["peak_rss_growth_bytes"] - report["destination_bytes"]
            growth[name] = max(growth[name], above)
            begin = time.perf_counter()
            subprocess.run([build / "examples" / "inspect", path], check=True, capture_output=True)
            opened[name].append(1000 * (time.perf_counter() - begin))
    print(f"{'format':14} {'FP16, s':>8} {'ratio':>6} {'above, MiB':>11} {'inspect, ms':>12}")
    for name in paths:
        print(
            f"{name:14} {statistics.median(seconds[name]):8.3f} {statistics.median(ratios[name]):6.2f}"
            f" {growth[name] / 2**20:11.2f} {statistics.median(opened[name]):12.1f}"
        )


if __name__ == "__main__":
    main()
