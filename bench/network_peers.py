# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Time for an image of VGG16's forward pass: this library beside torch and onnxruntime.

    python bench/network_peers.py BUILD_FOLDER FP32_CHECKPOINT WORK_FOLDER [ROUNDS]

All have the same weights and two threads, run in turn, each a process of its own that waits while the others are
timed. Prints medians, the ratios that docs/benchmarks.md has, and the memory of each process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

THREADS = 2
BATCHES = (1, 8)
STREAMED_LIMIT = 64 << 20


def torch_network(path):
    import torch
    import torchvision
    from safetensors.torch import load_file

    torch.set_num_threads(THREADS)
    with torch.device("meta"):
        network = torchvision.models.vgg16(weights=None)
    network.load_state_dict(load_file(path), assign=True)
    return network.eval()


def torch_eager(path, images):
    network = torch_network(path)
    return lambda: network(images)


def torch_channels_last(path, images):
    import torch

    network = torch_network(path).to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    return lambda: network(images)


def torch_frozen(path, images):
    """Traced, frozen, and its weights in oneDNN's own order."""
    import torch

    traced = torch.jit.trace(torch_network(path), images)
    network = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    return lambda: network(images)


def onnx_file(path):
    """The same network and weights as ONNX, beside the checkpoint's other copies."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from safetensors.numpy import load_file

    tensors = load_file(path)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors))
    nodes, last = [], "images"

    def add(kind, *weights, **attributes):
        nonlocal last
        output = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, [last, *weights], [output], **attributes))
        last = output

    def parameters(layer):
        return f"{layer}.weight", f"{layer}.bias"

    layers.sort(key=lambda name: (not name.startswith("features"), int(name.rpartition(".")[2])))
    for number, layer in enumerate(layers[:13], 1):
        add("Conv", *parameters(layer), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        add("Relu")
        if number in (2, 4, 7, 10, 13):
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    add("Flatten")
    for number, layer in enumerate(layers[13:]):
        add("Gemm", *parameters(layer), transB=1)
        if number < 2:
            add("Relu")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [value("images", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [value(last, TensorProto.FLOAT, ["batch", 1000])],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def onnxruntime_session(path, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {"images": images.numpy()}
    return lambda: session.run(None, inputs)


PEERS = {
    "torch": torch_eager,
    "torch, channels last": torch_channels_last,
    "torch, frozen": torch_frozen,
    "onnxruntime": onnxruntime_session,
}


def answer(name, path, batch):
    """As bench_network does: each line asks for one run."""
    import torch

    images = torch.from_numpy(
        np.random.default_rng(1).uniform(-2, 2, (batch, 3, 224, 224)).astype(np.float32)
    )
    with torch.inference_mode():
        run = PEERS[name](path, images)
        for _ in sys.stdin:
            start = time.perf_counter()
            run()
            print(f"{time.perf_counter() - start:.6f}", flush=True)


class Contestant:
    def __init__(self, line):
        self.process = subprocess.Popen(
            list(map(str, line)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.seconds = []

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = float(self.process.stdout.readline())
        time.sleep(0.05)  # until its threads no longer spin
        return seconds

    def measure(self):
        self.seconds.append(self.run())

    def mebibytes(self, key):
        with open(f"/proc/{self.process.pid}/status") as status:
            rows = dict(row.split(":", 1) for row in status)
        return int(rows[key].split()[0]) / 1024

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def own_contestant(build, file, dtype, limit=0, batch=1, *read_ahead):
    return Contestant([build / "bench/bench_network", file, batch, THREADS, dtype, limit, *read_ahead])


def ratio_of(one, other):
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds))


def contestants(build, files, batch):
    def own(file, dtype, limit=0):
        return own_contestant(build, file, dtype, limit, batch)

    def peer(name, file):
        return Contestant([sys.executable, __file__, "--peer", name, file, batch])

    started = {
        "FP32, mapped": own(files["torch"], "keep"),
        "FP32, mapped, Keras' layout": own(files["keras"], "keep"),
        "FP16": own(files["torch"], "f16"),
    }
    if batch == 1:
        started["FP32, streamed in 64 MiB"] = own(files["torch"], "keep", STREAMED_LIMIT)
        started["FP32, streamed in 64 MiB, Keras' layout"] = own(files["keras"], "keep", STREAMED_LIMIT)
        started["FP16, streamed in 64 MiB"] = own(files["f16"], "keep", STREAMED_LIMIT)
    for name in PEERS:
        started[name] = peer(name, files["onnx" if name == "onnxruntime" else "torch"])
    return started


def compare(build, files, batch, rounds):
    started = contestants(build, files, batch)
    for _ in range(2):  # to warm up
        for contestant in started.values():
            contestant.run()
    for _ in range(rounds):
        for contestant in started.values():
            contestant.measure()
    medians = {name: statistics.median(one.seconds) for name, one in started.items()}
    best_torch = min((name for name in medians if name.startswith("torch")), key=medians.get)

    def ratio(name, other):
        return ratio_of(started[name], started[other])

    print(f"\nbatch {batch}, {THREADS} threads, medians of {rounds} rounds; to {best_torch}, to onnxruntime\n")
    print("| | ms an image | to torch | to onnxruntime | peak resident, MiB | anonymous, MiB |")
    print("|---|---|---|---|---|---|")
    for name, one in started.items():
        print(
            f"| {name} | {medians[name] / batch * 1000:.1f} | {ratio(name, best_torch):.2f}"
            f" | {ratio(name, 'onnxruntime'):.2f} | {one.mebibytes('VmHWM'):.1f}"
            f" | {one.mebibytes('RssAnon'):.1f} |"
        )
    if batch == 1:
        print()
        for streamed, whole in (
            ("FP32, streamed in 64 MiB", "FP32, mapped"),
            ("FP32, streamed in 64 MiB, Keras' layout", "FP32, mapped, Keras' layout"),
            ("FP16, streamed in 64 MiB", "FP16"),
        ):
            print(f"{streamed} / {whole}: {ratio(streamed, whole):.2f}  (bar 1.2)")
    for one in started.values():
        one.end()


def drop_from_page_cache(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_whole(path):
    window = bytearray(4 << 20)
    with open(path, "rb", buffering=0) as file:
        start = time.perf_counter()
        while file.readinto(window):
            pass
        return time.perf_counter() - start


def compare_cold(build, files, rounds):
    """Streamed from the device instead of the page cache, with and without reading ahead."""
    print("\nfrom a cold file, batch 1: milliseconds, medians\n")
    print("| | reads ahead | does not | ratio | the file is read in |")
    print("|---|---|---|---|---|")
    for name in ("torch", "keras"):
        path = files[name]
        ahead = own_contestant(build, path, "keep", STREAMED_LIMIT)
        without = own_contestant(build, path, "keep", STREAMED_LIMIT, 1, 0)
        whole = []
        for _ in range(rounds):
            for measure in (ahead.measure, without.measure, lambda: whole.append(read_whole(path))):
                drop_from_page_cache(path)
                measure()
        milliseconds = [statistics.median(each) * 1000 for each in (ahead.seconds, without.seconds, whole)]
        print(
            f"| FP32, {name}'s layout | {milliseconds[0]:.0f} | {milliseconds[1]:.0f}"
            f" | {ratio_of(ahead, without):.2f} | {milliseconds[2]:.0f} |"
        )
        ahead.end()
        without.end()


def make_files(build, checkpoint, folder):
    folder.mkdir(parents=True, exist_ok=True)
    files = {"torch": checkpoint}
    for name, options in (
        ("keras", ["--layout", "keras", "--dtype", "keep"]),
        ("f16", ["--dtype", "f16"]),
    ):
        files[name] = folder / f"{name}.safetensors"
        if not files[name].exists():
            line = [build / "examples/convert", checkpoint, files[name], *options]
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    files["onnx"] = folder / "vgg16.onnx"
    if not files["onnx"].exists():
        import onnx

        onnx.save(onnx_file(checkpoint), files["onnx"])
    return files


def main():
    if sys.argv[1] == "--peer":
        answer(sys.argv[2], sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rounds", type=int, nargs="?", default=15)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    files = make_files(options.build, options.checkpoint, options.folder)
    compare_cold(options.build, files, options.rounds)
    for path in files.values():
        # What was written page by page lies in the page cache page by page, and is read from it at two thirds of the speed.
        drop_from_page_cache(path)
        read_whole(path)
    for batch in BATCHES:
        compare(options.build, files, batch, options.rounds if batch == 1 else options.rounds // 2)


if __name__ == "__main__":
    main()
