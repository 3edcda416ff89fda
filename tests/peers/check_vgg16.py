# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""VGG16 itself: loading, memory, generated checkpoints, the names in use."""

import json
import math
import re
import zlib

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from support import BF16, CODES, F16, F32, FLOAT_TARGETS, MIB, check, convert

WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
# torchvision's features.N and Keras' blockB_convC for the 13 convolutions.
FEATURES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
BLOCKS = [(1, 1), (1, 2), (2, 1), (2, 2), *((b, c) for b in (3, 4, 5) for c in (1, 2, 3))]
PARAMETERS = 138_357_544


def layer_shapes(classes=1000):
    """Weight shapes in network order, as torch has them: [out, in, ...]."""
    inputs = [3, *WIDTHS[:-1]]
    shapes = [(out, into, 3, 3) for out, into in zip(WIDTHS, inputs)]
    return shapes + [(4096, 25088), (4096, 4096), (classes, 4096)]


def torchvision_names():
    layers = [f"features.{n}" for n in FEATURES] + [f"classifier.{n}" for n in (0, 3, 6)]
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def network_shapes(classes=1000):
    """Shapes in network order, weight then bias."""
    return [shape for weight in layer_shapes(classes) for shape in (weight, weight[:1])]


def random_network(context, dtype=F32):
    """Random tensors in network order; each starts with numbers hard to round."""
    tensors = []
    for shape in network_shapes():
        values = context.numpy.standard_normal(math.prod(shape), F32)
        values *= F32.type(0.02)
        count = min(values.size, 4096) // 2
        values[:count] *= np.exp2(context.numpy.uniform(-26, 22, count)).astype(F32)
        tensors.append(convert(values, dtype).reshape(shape))
    return tensors


def crc_of(tensors, dtype):
    value = 0
    for tensor in tensors:
        value = zlib.crc32(np.ascontiguousarray(convert(tensor, dtype)).view(np.uint8), value)
    return f"{value:08x}"


def load_problem(outcome, **wanted):
    """None where the load succeeded and said all of `wanted`."""
    if problem := outcome.accepted():
        return problem
    got = outcome.json()
    wrong = {key: value for key, value in wanted.items() if got.get(key) != value}
    return (
        ", ".join(f"{key} {got.get(key)!r} for {value!r}" for key, value in wrong.items()) or None
    )


def skip_problem(outcome, names, **wanted):
    """The same, for a load that should skip the tensors `names`, in any order."""
    if problem := outcome.accepted():
        return problem
    skipped = outcome.json().get("skipped")
    if sorted(skipped) != sorted(names):
        return f"skipped {skipped}"
    return load_problem(outcome, **wanted)


# ---- loading -----------------------------------------------------------------


@check
def check_load(context):
    path = context.folder / "vgg16.safetensors"
    tensors = random_network(context)
    save_file(dict(zip(torchvision_names(), tensors)), path)
    size = path.stat().st_size
    common = dict(format="safetensors", layout="torch", file_bytes=size)

    for name, dtype in FLOAT_TARGETS.items():
        wanted = common | dict(dtype=CODES[name], crc32=crc_of(tensors, dtype))
        wanted |= dict(tensors=32, parameters=PARAMETERS, skipped=[])
        total = PARAMETERS * dtype.itemsize
        if dtype == F32:  # as in the file, so nothing is copied
            wanted |= dict(copied_bytes=0, mapped_bytes=total)
        else:
            wanted |= dict(copied_bytes=total, mapped_bytes=0, destination_bytes=total)
        for threads in (1, 2, 16):
            arguments = (path, "--dtype", name, "--threads", threads, "--json")
            outcome, peak = context.peak_rss("load_vgg16", *arguments)
            yield f"{name}, {threads} threads", load_problem(outcome, **wanted)
            if dtype == F32 or outcome.code:
                continue
            growth = outcome.json()["peak_rss_growth_bytes"]
            limit = total + 8 * MIB
            problem = f"{growth:,} over {limit:,}" if growth > limit else None
            yield f"{name}, {threads} threads, reports {growth / MIB:.1f} MiB more", problem
            # From outside all counts, the program before the load as well.
            problem = f"{peak:,} over {limit + 8 * MIB:,}" if peak > limit + 8 * MIB else None
            problem = problem or (f"{peak:,} for {growth:,}" if peak < growth else None)
            yield f"{name}, {threads} threads, {peak / MIB:.1f} MiB from outside", problem

    yield from memory_limits(context, path)

    body = tensors[:26]
    outcome = context.run("load_vgg16", path, "--dtype", "f16", "--no-top", "--json")
    wanted = common | dict(tensors=26, parameters=14_714_688, crc32=crc_of(body, F16))
    problem = skip_problem(outcome, torchvision_names()[26:], **wanted)
    yield "--no-top skips the top and names it", problem
    yield "plain text", context.run("load_vgg16", path).accepted()
    path.unlink()

    save_file(dict(zip(torchvision_names(), body)), path)
    outcome = context.run("load_vgg16", path, "--dtype", "bf16", "--no-top", "--json")
    wanted = dict(tensors=26, skipped=[], crc32=crc_of(body, BF16))
    yield "--no-top without a top", load_problem(outcome, **wanted)
    yield from bad_networks(context, path, body)


def memory_limits(context, path):
    needed = PARAMETERS * 2
    for text in ("1", "1KiB", "100MiB", str(needed - 1)):
        arguments = (path, "--dtype", "f16", "--json", "--memory-limit", text)
        outcome = context.run("load_vgg16", *arguments)
        problem = outcome.refused(str(path))
        if not problem:
            line = outcome.stderr.decode().replace(str(path), "").replace(",", "")
            numbers = [int(number) for number in re.findall(r"\d+", line)]
            # The limit may be said as it was given, but what is needed must be there.
            if not any(number >= needed for number in numbers) or len(numbers) < 2:
                problem = f"without the numbers: {outcome.brief()}"
        yield f"limit of {text} refused", problem
    for text in ("300MiB", "1GiB", str(needed + 8 * MIB)):
        arguments = (path, "--dtype", "f16", "--threads", 2, "--memory-limit", text)
        yield f"limit of {text} is enough", context.run("load_vgg16", *arguments).accepted()
    for dtype in ("f16", "bf16"):
        arguments = (path, "--dtype", dtype, "--threads", 2)
        outcome = context.run("load_vgg16", *arguments, address_space=needed + 64 * MIB)
        yield f"{dtype} with address space for the weights and 64 MiB", outcome.accepted()
    # Not enough: an error like any other, no crash.
    outcome = context.run("load_vgg16", path, "--dtype", "f16", address_space=needed)
    yield "address space too small", outcome.refused()


def bad_networks(context, path, body):
    """Files that are no VGG16, though near; the error names the tensor."""
    names = torchvision_names()

    def refused(name, tensor, *words):
        tensors = dict(zip(names, body)) | {name: tensor}
        save_file({name: value for name, value in tensors.items() if value is not None}, path)
        outcome = context.run("load_vgg16", path, "--dtype", "f16", "--no-top", "--json")
        return outcome.refused(name, *words)

    bias, weight, last = "features.0.bias", "features.0.weight", "features.28.weight"
    yield "a bias missing", refused(bias, None)
    yield "a weight missing", refused(last, None)
    yield "a kernel too large", refused(weight, np.zeros((64, 3, 5, 5), F32), "5")
    yield "one kernel turned", refused(weight, np.zeros((3, 3, 3, 64), F32))
    yield "a bias too long", refused(bias, np.zeros(65, F32), "65")
    yield "a bias of rank 2", refused(bias, np.zeros((64, 1), F32))
    yield "integers", refused(weight, np.zeros((64, 3, 3, 3), np.int32))
    save_file(dict(zip(names, body)), path)
    outcome = context.run("load_vgg16", path, "--dtype", "f16", "--json")
    yield "no top, without --no-top", outcome.refused("classifier.0.weight")
    path.write_bytes(path.read_bytes()[:-1])
    yield "cut short", context.run("load_vgg16", path, "--no-top").refused(str(path))
    path.unlink()


# ---- generated checkpoints ---------------------------------------------------


def checkpoint_problem(path, classes, top=True):
    """Names, shapes, order and distribution, as the library reads them."""
    count = 32 if top else 26
    shapes = dict(list(zip(torchvision_names(), network_shapes(classes)))[:count])
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        pairs = json.loads(file.read(length), object_pairs_hook=list)
    order = [name for name, _ in pairs if name != "__metadata__"]
    if order != list(shapes):
        return f"order {order}"
    with safetensors.safe_open(path, framework="np") as file:
        for name, shape in shapes.items():
            values = file.get_tensor(name)
            if values.dtype != F32 or values.shape != shape:
                return f"{name}: {values.dtype} {values.shape}"
            if name.endswith("bias"):
                if values.any():
                    return f"{name} is not all zeros"
                continue
            fan_in = math.prod(shape[1:])
            wanted = math.sqrt(2 / fan_in)
            mean, deviation = values.mean(dtype=float), values.std(dtype=float)
            # Six standard errors: not by chance.
            if abs(mean) > 6 * wanted / math.sqrt(values.size):
                return f"{name}: mean {mean:.3g}"
            if abs(deviation / wanted - 1) > 6 / math.sqrt(2 * values.size):
                return f"{name}: standard deviation {deviation:.6g} for {wanted:.6g}"
    return None


def same_bytes(first, second):
    a, b = (np.memmap(path, np.uint8, "r") for path in (first, second))
    return a.size == b.size and bool((a == b).all())


@check
def check_checkpoint(context):
    first, second = context.folder / "a.safetensors", context.folder / "b.safetensors"

    outcome = context.run("make_checkpoint", first, "--seed", 7)
    problem = outcome.accepted() or checkpoint_problem(first, 1000)
    yield "full size", problem
    outcome = context.run("load_vgg16", first, "--dtype", "f32", "--json")
    problem = outcome.accepted()
    if not problem:
        tensors = load_file(first)
        value = crc_of((tensors[name] for name in torchvision_names()), F32)
        problem = load_problem(outcome, parameters=PARAMETERS, copied_bytes=0, crc32=value)
        del tensors
    yield "full size, loaded", problem
    outcome = context.run("make_checkpoint", second, "--seed", 7)
    problem = outcome.accepted() or (None if same_bytes(first, second) else "differs")
    yield "same seed, same bytes", problem

    outcome = context.run("make_checkpoint", first, "--seed", 7, "--classes", 10)
    yield "10 classes", outcome.accepted() or checkpoint_problem(first, 10)
    outcome = context.run("load_vgg16", first, "--dtype", "bf16", "--json")
    parameters = PARAMETERS - 990 * 4097
    yield "10 classes, loaded", load_problem(outcome, parameters=parameters, tensors=32)

    outcome = context.run("make_checkpoint", first, "--seed", 7, "--no-top")
    yield "without the top", outcome.accepted() or checkpoint_problem(first, 1000, top=False)
    outcome = context.run("make_checkpoint", second, "--seed", 8, "--no-top")
    problem = outcome.accepted() or ("the same" if same_bytes(first, second) else None)
    yield "another seed, other bytes", problem
    for path in (first, second):
        path.unlink(missing_ok=True)


# ---- the names in use --------------------------------------------------------


def both(layers, weight="weight", bias="bias", separator="."):
    return [f"{layer}{separator}{part}" for layer in layers for part in (weight, bias)]


def keras_network(tensors):
    """Keras stores kernels as [height, width, in, out] and [in, out]."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    return [np.ascontiguousarray(tensor.transpose(axes[tensor.ndim])) for tensor in tensors]


def timm_network(tensors):
    """timm has the first two dense layers as convolutions."""
    shapes = {26: (4096, 512, 7, 7), 28: (4096, 4096, 1, 1)}
    return [tensor.reshape(shapes.get(at, tensor.shape)) for at, tensor in enumerate(tensors)]


def name_maps():
    """Label, names in network order, and how the tensors are laid out."""
    features = [f"features.{n}" for n in FEATURES]
    torch = torchvision_names()
    yield "torchvision", torch, list
    yield "module. prefix", [f"module.{name}" for name in torch], list
    yield "jcjohnson", both(features + [f"classifier.{n}" for n in (1, 4, 6)]), list
    yield "timm", both(features + ["pre_logits.fc1", "pre_logits.fc2", "head.fc"]), timm_network
    onnx = [f"vgg0_conv{n}" for n in range(13)] + [f"vgg0_dense{n}" for n in range(3)]
    yield "ONNX zoo", both(onnx, separator="_"), list

    blocks = [f"block{b}_conv{c}" for b, c in BLOCKS] + ["fc1", "fc2", "predictions"]
    twice = [f"{layer}/{layer}" for layer in blocks]
    yield "Keras", both(twice, "kernel:0", "bias:0", "/"), keras_network
    yield "Keras, older", both(twice, "W_1:0", "b_1:0", "_"), keras_network
    numbered = [f"layers/conv2d{f'_{n}' if n else ''}" for n in range(13)]
    numbered += [f"layers/dense{f'_{n}' if n else ''}" for n in range(3)]
    yield "Keras 3", both(numbered, "vars/0", "vars/1", "/"), keras_network


@check
def check_names(context):
    path = context.folder / "named.safetensors"
    tensors = random_network(context, F16)
    for label, names, arrange in name_maps():
        arranged = arrange(tensors)
        layout = "keras" if arrange is keras_network else "torch"
        save_file(dict(zip(names, arranged)), path)
        wanted = dict(tensors=32, parameters=PARAMETERS, layout=layout, skipped=[])
        for dtype in ("f16",) if context.quick else ("f16", "f32"):
            outcome = context.run("load_vgg16", path, "--dtype", dtype, "--json")
            value = crc_of(arranged, FLOAT_TARGETS[dtype])
            yield (
                f"{label}, {dtype}",
                load_problem(outcome, **wanted, dtype=CODES[dtype], crc32=value),
            )
        outcome = context.run("load_vgg16", path, "--dtype", "f16", "--no-top", "--json")
        value = crc_of(arranged[:26], F16)
        problem = skip_problem(outcome, names[26:], tensors=26, crc32=value, layout=layout)
        yield f"{label}, --no-top", problem
        path.unlink()
