# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""make_batches --exact gives what Keras' flow_from_directory gives, bit for bit."""

import warnings

import numpy as np
from photographs import ENCODINGS, write_mixed
from support import check
from writers import WRITERS  # noqa: F401 (chooses Keras' backend)

EPOCHS = 2


def keras_batches(folder, options, flow):
    """The batches of two epochs in the order of `__getitem__`."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = ImageDataGenerator(**options).flow_from_directory(folder, **flow)
    for epoch in range(EPOCHS):
        for number in range(len(batches)):
            yield epoch, number, batches[number]
        batches.on_epoch_end()


def compare(prefix, folder, options, flow):
    """Every file that was written is Keras' batch, and there is none beside them."""
    expected = set()
    for epoch, number, batch in keras_batches(folder, options, flow):
        images, labels = (batch, None) if flow["class_mode"] is None else batch
        for suffix, wanted in (("x", images), ("y", labels)):
            if wanted is None:
                continue
            path = prefix.parent / f"{prefix.name}-{epoch:04}-{number:04}-{suffix}.npy"
            expected.add(path)
            if not path.exists():
                return f"no {path.name}"
            got = np.load(path)
            if got.dtype != np.float32 or got.shape != wanted.shape:
                return f"{path.name}: {got.dtype} {got.shape}, Keras {wanted.dtype} {wanted.shape}"
            if got.tobytes() != np.ascontiguousarray(wanted).tobytes():
                off = got != wanted
                return (
                    f"{path.name}: {off.sum()} of {off.size} values differ,"
                    f" by {np.abs(got - wanted).max()} at most, in images"
                    f" {sorted(set(np.nonzero(off)[0].tolist()))}"
                )
    beside = set(prefix.parent.glob(f"{prefix.name}-*.npy")) - expected
    return f"{len(beside)} files too many" if beside else None


# Options of the command, of ImageDataGenerator, and of flow_from_directory.
CASES = [
    (
        ["--shear", "0.2", "--zoom", "0.2", "--hflip", "--rescale", "1/255"],
        {"shear_range": 0.2, "zoom_range": 0.2, "horizontal_flip": True, "rescale": 1.0 / 255},
        {"target_size": (224, 224)},
    ),
    (
        ["--shear", "20", "--zoom", "0.5", "--hflip"],
        {"shear_range": 20, "zoom_range": 0.5, "horizontal_flip": True},
        {"target_size": (48, 80), "batch_size": 7, "class_mode": "sparse"},
    ),
    ([], {}, {"target_size": (61, 31), "batch_size": 5, "class_mode": "binary"}),
    (["--no-shuffle"], {}, {"target_size": (64, 64), "class_mode": None, "shuffle": False}),
    (
        ["--zoom", "0.3", "--rescale", "0.0078125"],
        {"zoom_range": 0.3, "rescale": 0.0078125},
        {"target_size": (200, 90), "batch_size": 1},
    ),
]


@check
def check_batches(context):
    folder = context.folder / "photographs"
    classes = ["tulips", "Ästhetik", "a b", "zebra"][: context.rounds(4, 2)]
    per_class = -(-len(ENCODINGS) // len(classes)) + 2
    write_mixed(folder, context.numpy, classes, per_class, (20, 260))
    for number, (arguments, options, flow) in enumerate(CASES):
        flow = {"batch_size": 32, "class_mode": "categorical", **flow}
        flow["seed"] = int(context.numpy.integers(2**31))
        prefix = context.folder / f"case{number}"
        height, width = flow["target_size"]
        line = ["make_batches", folder, "--exact", "--target", f"{height}x{width}"]
        line += ["--batch", flow["batch_size"], "--seed", flow["seed"], "--epochs", EPOCHS]
        line += ["--class-mode", flow["class_mode"] or "none", "--npy", prefix, *arguments]
        for workers in (1, 3):
            outcome = context.run(*line, "--workers", workers)
            problem = outcome.brief() if outcome.code else compare(prefix, folder, options, flow)
            yield f"{' '.join(map(str, line[4:]))[:90]}, {workers} workers", problem
            for path in context.folder.glob("case*.npy"):
                path.unlink()
