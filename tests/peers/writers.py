# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""A full-size VGG16 in every format, by the library that people write it with.

    python writers.py FOLDER [FORMAT...]

`WRITERS` maps a name to a function `write(folder, tensors)`, which gets the 32
arrays in network order and torch's layout and returns the path of the file, and
to what a load should say of it.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

os.environ.setdefault("KERAS_BACKEND", "torch")

FEATURES = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
BLOCKS = [(1, 1), (1, 2), (2, 1), (2, 2), *((b, c) for b in (3, 4, 5) for c in (1, 2, 3))]
KERAS_LAYERS = [f"block{b}_conv{c}" for b, c in BLOCKS] + ["fc1", "fc2", "predictions"]


@dataclass
class Writer:
    write: Callable
    format: str
    layout: str = "torch"
    mapped: bool = True  # as FP32 nothing is copied
    whole: bool = True  # the payload lies whole in the file


def torch_names():
    layers = [f"features.{n}" for n in FEATURES] + [f"classifier.{n}" for n in (0, 3, 6)]
    return [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]


def zoo_names():
    layers = [f"vgg0_conv{n}" for n in range(13)] + [f"vgg0_dense{n}" for n in range(3)]
    return [f"{layer}_{part}" for layer in layers for part in ("weight", "bias")]


def to_keras(tensors):
    """The same weights in Keras' layout, by the formulas of the two frameworks."""
    result = []
    for index, tensor in enumerate(tensors):
        if tensor.ndim == 4:
            tensor = tensor.transpose(2, 3, 1, 0)
        elif index == 26:  # fc1: the image is flattened in another order
            tensor = tensor.reshape(-1, 512, 49).transpose(2, 1, 0).reshape(25088, -1)
        elif tensor.ndim == 2:
            tensor = tensor.T
        result.append(np.ascontiguousarray(tensor))
    return result


def write_safetensors(folder, tensors):
    from safetensors.numpy import save_file

    save_file(dict(zip(torch_names(), tensors)), folder / "vgg16.safetensors")
    return folder / "vgg16.safetensors"


def state_dict(tensors):
    import torch

    return {name: torch.from_numpy(values) for name, values in zip(torch_names(), tensors)}


def write_torch_zip(folder, tensors):
    import torch

    torch.save(state_dict(tensors), folder / "vgg16.pth")
    return folder / "vgg16.pth"


def write_torch_legacy(folder, tensors):
    import torch

    path = folder / "vgg16-legacy.pth"
    torch.save(state_dict(tensors), path, _use_new_zipfile_serialization=False)
    return path


def write_npz(folder, tensors):
    np.savez(folder / "vgg16.npz", **dict(zip(torch_names(), tensors)))
    return folder / "vgg16.npz"


def write_npz_fortran(folder, tensors):
    tensors = [np.asfortranarray(tensor) for tensor in tensors]
    np.savez(folder / "fortran.npz", **dict(zip(torch_names(), tensors)))
    return folder / "fortran.npz"


def write_npz_deflated(folder, tensors):
    np.savez_compressed(folder / "deflated.npz", **dict(zip(torch_names(), tensors)))
    return folder / "deflated.npz"


def onnx_model(names, tensors):
    from onnx import TensorProto, helper, numpy_helper

    initializers = [numpy_helper.from_array(v, name) for name, v in zip(names, tensors)]
    image = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 224, 224])
    graph = helper.make_graph([], "vgg16", [image], [image], initializers)
    return helper.make_model(graph)


def write_onnx(folder, tensors):
    import onnx

    onnx.save(onnx_model(zoo_names(), tensors), folder / "vgg16.onnx")
    return folder / "vgg16.onnx"


def write_onnx_external(folder, tensors):
    import onnx

    path = folder / "external.onnx"
    onnx.save(onnx_model(zoo_names(), tensors), path, save_as_external_data=True, location="data")
    return path


def write_gguf(folder, tensors):
    import gguf

    path = folder / "vgg16.gguf"
    writer = gguf.GGUFWriter(path, "vgg16")
    for name, values in zip(torch_names(), tensors):
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_h5_classic(folder, tensors):
    """As the official file of 2016 has it."""
    import h5py

    path = folder / "classic.h5"
    tensors = to_keras(tensors)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in KERAS_LAYERS]
        for index, layer in enumerate(KERAS_LAYERS):
            group = file.create_group(layer)
            names = [f"{layer}_W_1:0", f"{layer}_b_1:0"]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, values in zip(names, tensors[2 * index :]):
                group.create_dataset(name, data=values)
    return path


def write_h5_chunked(folder, tensors):
    import h5py

    path = folder / "chunked.h5"
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        for index, values in enumerate(to_keras(tensors)):
            name = f"{KERAS_LAYERS[index // 2]}/{['kernel', 'bias'][index % 2]}"
            file.create_dataset(name, data=values, chunks=True, compression="gzip", shuffle=True)
    return path


def keras_model(tensors, named=True):
    """`named`: after VGG16's layers, otherwise as Keras names them."""
    import keras

    model = keras.Sequential([keras.Input((224, 224, 3))])
    widths = [len(bias) for bias in tensors[1::2]]
    for index, name in enumerate(KERAS_LAYERS):
        name = name if named else None
        if index < 13:
            model.add(keras.layers.Conv2D(widths[index], 3, padding="same", name=name))
            if index in (1, 3, 6, 9, 12):
                model.add(keras.layers.MaxPooling2D(2))
        else:
            if index == 13:
                model.add(keras.layers.Flatten())
            model.add(keras.layers.Dense(widths[index], name=name))
    model.set_weights(to_keras(tensors))
    return model


def write_keras_weights(folder, tensors):
    keras_model(tensors).save_weights(folder / "vgg16.weights.h5")
    return folder / "vgg16.weights.h5"


def write_keras(folder, tensors):
    model = keras_model(tensors)
    model.compile(optimizer="sgd", loss="mse")
    model.save(folder / "vgg16.keras")
    return folder / "vgg16.keras"


def write_keras_h5(folder, tensors):
    """The whole model in the older format, whose attributes alone tell the layers."""
    model = keras_model(tensors, named=False)
    model.compile(optimizer="sgd", loss="mse")
    model.save(folder / "model.h5")
    return folder / "model.h5"


WRITERS = {
    "safetensors": Writer(write_safetensors, "safetensors"),
    "torch-zip": Writer(write_torch_zip, "torch-zip"),
    "torch-legacy": Writer(write_torch_legacy, "torch-legacy"),
    "npz": Writer(write_npz, "npz"),
    "npz-fortran": Writer(write_npz_fortran, "npz"),
    "npz-deflated": Writer(write_npz_deflated, "npz", mapped=False, whole=False),
    "onnx": Writer(write_onnx, "onnx"),
    "onnx-external": Writer(write_onnx_external, "onnx"),
    "gguf": Writer(write_gguf, "gguf"),
    "h5-classic": Writer(write_h5_classic, "hdf5", "keras"),
    "h5-chunked": Writer(write_h5_chunked, "hdf5", "keras", mapped=False, whole=False),
    "keras-weights": Writer(write_keras_weights, "hdf5", "keras"),
    "keras": Writer(write_keras, "keras", "keras"),
    "keras-h5": Writer(write_keras_h5, "hdf5", "keras"),
}


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    from check_vgg16 import network_shapes

    rng = np.random.default_rng(1)
    tensors = [0.02 * rng.standard_normal(shape, np.float32) for shape in network_shapes()]
    for name in sys.argv[2:] or WRITERS:
        # One at a time: each is half a gigabyte, here and in the writer's memory.
        print(f"{name}\t{WRITERS[name].write(folder, tensors)}", flush=True)


if __name__ == "__main__":
    main()
