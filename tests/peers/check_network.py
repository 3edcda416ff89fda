# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The forward pass against PyTorch's and Keras': the same weights, in the files that they write, the same images."""

import subprocess
import time

import numpy as np
import torch
import torchvision
from check_vgg16 import network_shapes
from photographs import crop, photographs, write_mixed
from PIL import Image
from support import MIB, Outcome, check
from writers import torch_names, write_keras, write_keras_weights, write_safetensors

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Of the largest logit. Products are summed in FP32 whatever the type of the weights.
FP32_BAR = 1e-5
# Against the weights before they were rounded.
STORAGE_BARS = {"f16": 2e-3, "bf16": 2e-2}


def he_weights(context):
    """In network order, as torch initialises them; biases that are not all zero."""
    torch.manual_seed(int(context.numpy.integers(2**31)))
    tensors = [torch.empty(shape) for shape in network_shapes()]
    for weight, bias in zip(tensors[::2], tensors[1::2]):
        torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
        torch.nn.init.uniform_(bias, -0.1, 0.1)
    return [tensor.numpy() for tensor in tensors]


def torch_logits(tensors, images, dtype=torch.float32):
    """Of torchvision's VGG16 in FP32, with its weights rounded to `dtype`; images are [N, 224, 224, 3]."""
    network = torchvision.models.vgg16(weights=None).eval()
    rounded = (torch.from_numpy(tensor).to(dtype).float() for tensor in tensors)
    network.load_state_dict(dict(zip(torch_names(), rounded)))
    logits = []
    with torch.inference_mode():
        for first in range(0, len(images), 8):
            batch = torch.from_numpy(np.ascontiguousarray(images[first : first + 8]))
            logits.append(network(batch.permute(0, 3, 1, 2)).numpy())
    return np.concatenate(logits)


def keras_network():
    """VGG16 of Keras itself, without the softmax."""
    import keras

    return keras.applications.VGG16(weights=None, classifier_activation=None)


def torch_transform():
    return torchvision.models.VGG16_Weights.IMAGENET1K_V1.transforms()


def torch_prepared(paths):
    """Images as torchvision's weights want them, [N, 224, 224, 3]."""
    prepare = torch_transform()
    images = [prepare(Image.open(path).convert("RGB")) for path in paths]
    return np.ascontiguousarray(torch.stack(images).permute(0, 2, 3, 1).numpy())


def keras_prepared(paths):
    """Images as Keras' weights want them."""
    from keras.applications.vgg16 import preprocess_input
    from keras.utils import img_to_array, load_img

    images = [img_to_array(load_img(path, target_size=(224, 224))) for path in paths]
    return preprocess_input(np.stack(images))


def some_images(context, count):
    """Noise and photographs in turn, in about the range that the networks see."""
    pictures = photographs()
    images = []
    for number in range(count):
        if number % 2:
            pixels = np.asarray(crop(context.numpy, pictures, 224, 224), np.float32)
            images.append(pixels / 64 - 2)
        else:
            images.append(context.numpy.standard_normal((224, 224, 3), np.float32))
    return np.stack(images)


def ranking(logits):
    return np.argsort(-logits, axis=1, kind="stable")[:, :5]


def classify(context, weights, images, *options):
    """The outcome and the logits of prepared images, or of those at `images`' paths."""
    out = context.folder / "logits.npy"
    out.unlink(missing_ok=True)
    if isinstance(images, np.ndarray):
        np.save(context.folder / "images.npy", images)
        source = ["--input-npy", context.folder / "images.npy"]
    else:
        source = images
    outcome = context.run("classify", weights, *source, "--npy", out, *options)
    return outcome, np.load(out) if outcome.code == 0 else None


def lines_problem(outcome, names, logits):
    """None where the lines are the five largest logits of each image and their softmax."""
    rows = [line.split("\t") for line in outcome.stdout.decode().splitlines()]
    if len(rows) != 5 * len(names):
        return f"{len(rows)} lines for {len(names)} images"
    wide = logits.astype(np.float64)
    scores = np.exp(wide - wide.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    for number, (name, classes) in enumerate(zip(names, ranking(logits))):
        for rank, index in enumerate(classes):
            got = rows[5 * number + rank]
            if got[:3] != [str(name), str(rank + 1), str(index)]:
                return f"{got}, wanted {name}, {rank + 1}, {index}"
            if abs(float(got[3]) - scores[number, index]) > 6e-7:
                return f"{got}, wanted a score of {scores[number, index]}"
    return None


def logits_problem(outcome, got, wanted, bar, same_order=True):
    if problem := outcome.accepted():
        return problem, ""
    if got.dtype != np.float32 or got.shape != wanted.shape:
        return f"{got.dtype} {got.shape} for {wanted.shape}", ""
    off = np.abs(got - wanted).max() / np.abs(wanted).max()
    label = f", off by {off:.1e}"
    if not off <= bar:
        return f"off by {off:.2e} of the largest logit, more than {bar}", label
    if same_order:
        differing = (ranking(got) != ranking(wanted)).any(axis=1)
        if differing.any():
            return f"another order of the first five in images {np.nonzero(differing)[0]}", label
    return None, label


@check
def check_network(context):
    tensors = he_weights(context)
    images = some_images(context, context.rounds(64, 8))
    few = images[:4]
    path = write_safetensors(context.folder, tensors)

    wanted = torch_logits(tensors, images)
    outcome, got = classify(context, path, images, "--batch", 8)
    problem, off = logits_problem(outcome, got, wanted, FP32_BAR)
    yield f"{len(images)} images, FP32{off}", problem
    names = [f"{context.folder / 'images.npy'}[{number}]" for number in range(len(images))]
    yield "the lines", outcome.accepted() or lines_problem(outcome, names, got)
    outcome, alone = classify(context, path, few)
    problem, off = logits_problem(outcome, alone, wanted[:4], FP32_BAR)
    yield f"one by one{off}", problem
    for threads in (1, 3):
        outcome, again = classify(context, path, few, "--threads", threads)
        problem = outcome.accepted() or (None if (again == alone).all() else "other bits")
        yield f"{threads} threads, the same bits", problem

    # Rounded while it is loaded, and by torch in its own file.
    for name, dtype in list(TYPES.items())[1:]:
        rounded = torch_logits(tensors, images if name == "f16" else few, dtype)
        file = context.folder / f"{name}.pth"
        state = zip(torch_names(), tensors)
        torch.save({key: torch.from_numpy(value).to(dtype) for key, value in state}, file)
        outcome, got = classify(context, file, images[: len(rounded)], "--batch", 8)
        problem, off = logits_problem(outcome, got, rounded, FP32_BAR)
        yield f"{len(rounded)} images, .pth of {name}{off}", problem
        problem, off = logits_problem(
            outcome, got, wanted[: len(rounded)], STORAGE_BARS[name], same_order=False
        )
        yield f".pth of {name}, against FP32{off}", problem
        outcome, alone = classify(context, file, few)
        outcome, got = classify(context, path, few, "--dtype", name)
        problem = outcome.accepted() or (None if (got == alone).all() else "other bits")
        yield f"--dtype {name}, the same bits as from the file", problem
        file.unlink()
    state = {key: torch.from_numpy(value) for key, value in zip(torch_names(), tensors)}
    for zipped in (True, False):
        file = context.folder / "f32.pth"
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        outcome, got = classify(context, file, few)
        problem, off = logits_problem(outcome, got, wanted[:4], FP32_BAR)
        yield f".pth of f32, {'a zip' if zipped else 'legacy'}{off}", problem
        file.unlink()


@check
def check_network_keras(context):
    tensors = he_weights(context)
    images = some_images(context, context.rounds(64, 8)) * np.float32(60)
    file = write_keras_weights(context.folder, tensors)
    network = keras_network()
    network.load_weights(file)
    wanted = np.concatenate(
        [network.predict_on_batch(images[i : i + 8]) for i in range(0, len(images), 8)]
    )
    outcome, got = classify(context, file, images, "--batch", 8)
    problem, off = logits_problem(outcome, got, wanted, FP32_BAR)
    yield f"{len(images)} images, .weights.h5{off}", problem
    # The same network in torch's layout has other sums, and the same result.
    other = write_safetensors(context.folder, tensors)
    outcome, got = classify(context, other, images[:4])
    problem, off = logits_problem(outcome, got, wanted[:4], FP32_BAR)
    yield f"in torch's layout{off}", problem
    other.unlink()

    for name, bar in STORAGE_BARS.items():
        outcome, got = classify(context, file, images[:4], "--dtype", name)
        problem, off = logits_problem(outcome, got, wanted[:4], bar, same_order=False)
        yield f".weights.h5 as {name}{off}", problem
    whole = write_keras(context.folder, tensors)
    outcome, got = classify(context, whole, images[:4])
    problem, off = logits_problem(outcome, got, wanted[:4], FP32_BAR)
    yield f".keras{off}", problem


@check
def check_classify_images(context):
    """Files of all kinds that are decoded: prepared here they give the logits of those that the peers prepared."""
    folder = context.folder / "photographs"
    write_mixed(folder, context.numpy, ["one"], context.rounds(34, 17), (40, 700))
    paths = sorted(folder.rglob("*.*"))
    prepared = {"torch": torch_prepared(paths), "keras": keras_prepared(paths)}
    tensors = he_weights(context)
    files = {
        "torch": write_safetensors(context.folder, tensors),
        "keras": write_keras_weights(context.folder, tensors),
    }
    for layout, file in files.items():
        other = "keras" if layout == "torch" else "torch"
        for whose, options in ((layout, []), (other, ["--preprocess", other])):
            outcome, wanted = classify(context, file, prepared[whose], "--batch", 8)
            outcome_of_files, got = classify(context, file, paths, "--batch", 8, *options)
            problem = outcome.accepted() or outcome_of_files.accepted()
            if not problem:
                differing = np.nonzero((got != wanted).any(axis=1))[0]
                if len(differing):
                    problem = f"{len(differing)} differ: {paths[differing[0]].name}"
            yield f"weights in {layout}'s layout, images as {whose}", problem
            names = [str(path) for path in paths]
            yield "the lines", problem or lines_problem(outcome_of_files, names, got)
    logits = torch_logits(tensors, prepared["torch"])
    outcome, got = classify(context, files["torch"], paths)
    problem, off = logits_problem(outcome, got, logits, FP32_BAR)
    yield f"torchvision from file to logits{off}", problem
    network = keras_network()
    network.load_weights(files["keras"])
    logits = network.predict(prepared["keras"], batch_size=8, verbose=0)
    outcome, got = classify(context, files["keras"], paths)
    problem, off = logits_problem(outcome, got, logits, FP32_BAR)
    yield f"Keras from file to logits{off}", problem


def watched(context, *arguments):
    """The outcome of a command, and its most resident and most anonymous memory, as the kernel shows them."""
    line = [str(context.build / "examples" / arguments[0]), *map(str, arguments[1:])]
    peaks = {"VmHWM": 0, "RssAnon": 0}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            with open(f"/proc/{process.pid}/status") as status:
                for row in status:
                    key, _, value = row.partition(":")
                    if key in peaks:
                        peaks[key] = max(peaks[key], int(value.split()[0]) * 1024)
            time.sleep(0.002)
        outcome = Outcome("classify", process.returncode, process.stdout.read(), process.stderr.read())
    return outcome, peaks["VmHWM"], peaks["RssAnon"]


@check
def check_network_memory(context):
    """One classification, from a photograph on: the bars on its memory, as seen from outside: program and libraries
    are in it."""
    photograph = context.folder / "photograph.jpg"
    crop(context.numpy, photographs(), 400, 600).save(photograph)
    path = write_safetensors(context.folder, he_weights(context))
    plan = context.run("plan_vgg16", "--dtype", "f16", "--compute", "f32", "--json").json()
    room = plan["activations_bytes"] + 16 * MIB
    weights = plan["weights_bytes"]

    def problem(outcome, got, limit):
        if problem := outcome.accepted():
            return problem
        return f"{got:,} over {limit:,}" if got > limit else None

    for threads in (1, 2):
        rest = (photograph, "--threads", threads)
        outcome, peak, _ = watched(context, "classify", path, "--dtype", "f16", *rest)
        label = f"FP16, {threads} threads: resident {(peak - weights - room) / MIB:+.1f} MiB"
        yield f"{label} against the bar", problem(outcome, peak, weights + room)
        outcome, _, anonymous = watched(context, "classify", path, *rest)
        label = f"FP32 mapped, {threads} threads: anonymous {(anonymous - room) / MIB:+.1f} MiB"
        yield f"{label} against the bar", problem(outcome, anonymous, room)

    # Where the weights cannot be loaded: all there is, the program included.
    limit = 64 * MIB
    _, loaded = classify(context, path, [photograph])
    for whole, options in ((loaded, []), (None, ["--dtype", "f16"])):
        if whole is None:
            _, whole = classify(context, path, [photograph], *options)
        options += ["--memory-limit", limit]
        outcome, peak, _ = watched(context, "classify", path, photograph, *options)
        label = f"streamed, {' '.join(map(str, options))}"
        yield f"{label}: resident {peak / MIB:.1f} MiB", problem(outcome, peak, limit)
        outcome, streamed = classify(context, path, [photograph], *options)
        differs = outcome.accepted() or (None if (streamed == whole).all() else "other bits")
        yield f"{label}: the same bits as loaded", differs
