# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""VGG16 as FP16 on a GPU: `load_vgg16 --device cuda` beside torch and safetensors.

    python bench/upload_peers.py BUILD_FOLDER CHECKPOINT.safetensors [ROUNDS]

Needs a GPU, and torch built for it. Interleaved, page cache warm; prints medians of the seconds
from the file to the last weight on the GPU, without the start of the process and the making of
CUDA's context, which all have alike. Without a GPU it says so.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def from_torch(path):
    tensors = torch.load(path, mmap=True, weights_only=True)
    return {name: tensor.half().to("cuda") for name, tensor in tensors.items()}


def from_safetensors(path):
    return {name: tensor.half() for name, tensor in load_file(path, device="cuda").items()}


def seconds_of(load, path):
    begin = time.perf_counter()
    tensors = load(path)
    torch.cuda.synchronize()
    elapsed = time.perf_counter() - begin
    del tensors
    torch.cuda.empty_cache()
    return elapsed


def main():
    if not torch.cuda.is_available():
        print("no GPU: nothing is measured")
        return
    build, path = Path(sys.argv[1]), sys.argv[2]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 9
    print(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as folder:
        pickled = Path(folder) / "vgg16.pth"
        torch.save(load_file(path), pickled)
        line = [build / "examples" / "load_vgg16", path, "--device", "cuda", "--json"]
        contestants = {
            "load_vgg16 --device cuda": lambda: json.loads(
                subprocess.run(line, check=True, capture_output=True).stdout
            )["seconds"],
            'torch: load(mmap=True), half().to("cuda")': lambda: seconds_of(from_torch, pickled),
            'safetensors: load_file("cuda"), half()': lambda: seconds_of(from_safetensors, path),
        }
        seconds = {name: [] for name in contestants}
        for round_ in range(rounds + 2):  # two to warm up
            for name, load in contestants.items():
                elapsed = load()
                if round_ >= 2:
                    seconds[name].append(elapsed)
    for name, all_ in seconds.items():
        print(f"{name:44} {statistics.median(all_):.4f} s")


if __name__ == "__main__":
    main()
