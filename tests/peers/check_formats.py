# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""All formats: one VGG16 through every real writer, and random tensors through each."""

import zlib

import numpy as np

from check_vgg16 import PARAMETERS, crc_of, load_problem, random_network
from support import CODES, F16, F32, FLOAT_TARGETS, MIB, check, crc
from writers import WRITERS, to_keras, torch_names

# libhdf5's own tables, beyond what the load of a file that is mapped takes.
LIBRARY_BYTES = {"hdf5": 8 * MIB, "keras": 8 * MIB}


def listing_crcs(outcome):
    return {t["name"]: t.get("crc32") for t in outcome.json()["tensors"]}


@check
def check_formats(context):
    tensors = random_network(context)
    layouts = {"torch": tensors, "keras": to_keras(tensors)}
    reference = dict(zip(torch_names(), (crc(t.tobytes()) for t in tensors)))
    for name, writer in WRITERS.items():
        if name == "npz-deflated" and context.quick:
            continue
        path = writer.write(context.folder, tensors)
        common = dict(format=writer.format, layout=writer.layout, parameters=PARAMETERS)
        for target, dtype in (("f16", F16), ("f32", F32)):
            wanted = common | dict(crc32=crc_of(layouts[writer.layout], dtype))
            if dtype == F32 and writer.mapped:
                wanted |= dict(copied_bytes=0, mapped_bytes=4 * PARAMETERS)
            outcome = context.run("load_vgg16", path, "--dtype", target, "--json")
            yield f"{name}, {target}", load_problem(outcome, **wanted)
            if outcome.code or target != "f16" or not writer.whole:
                continue
            report = outcome.json()
            limit = report["destination_bytes"] + 8 * MIB + LIBRARY_BYTES.get(writer.format, 0)
            growth = report["peak_rss_growth_bytes"]
            problem = f"{growth:,} over {limit:,}" if growth > limit else None
            yield f"{name}, f16, memory", problem
        # In one layout all are the same file.
        out = context.folder / "converted.safetensors"
        outcome = context.run("convert", path, out, "--layout", "torch", "--dtype", "keep")
        problem = outcome.accepted()
        if not problem:
            got = listing_crcs(context.run("inspect", out, "--json", "--digest"))
            wrong = [key for key in reference if got.get(key) != reference[key]]
            problem = f"{len(wrong)} tensors differ, {wrong[:1]}" if wrong else None
        yield f"{name}, in torch's layout", problem
        for file in context.folder.iterdir():
            file.unlink()


def random_arrays(context):
    """Named arrays of all types that NumPy has and most formats share."""
    types = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"]
    arrays = {}
    for index in range(context.random.randrange(1, 12)):
        rank = context.random.randrange(1, 5)
        shape = [context.random.randrange(1, 9) for _ in range(rank)]
        values = 50 * context.numpy.standard_normal(shape)
        name = f"layer{index}.{context.random.choice(['weight', 'bias', 'größe'])}"
        arrays[name] = np.asarray(values).astype(context.random.choice(types))
    return arrays


def compare(context, path, wanted):
    """`wanted`: name -> array that the real reader returns, or None where it cannot be read."""
    outcome = context.run("inspect", path, "--json", "--digest")
    if problem := outcome.accepted():
        return problem
    got = {t["name"]: t for t in outcome.json()["tensors"]}
    if sorted(got) != sorted(wanted):
        return f"tensors {sorted(got)} for {sorted(wanted)}"
    for name, array in wanted.items():
        data = np.ascontiguousarray(array)
        data = data.astype(data.dtype.newbyteorder("<")).tobytes()
        if got[name]["shape"] != list(array.shape) or got[name].get("crc32") != crc(data):
            return f"{name}: {got[name]}"
    return None


@check
def check_random_files(context):
    import gguf
    import h5py
    import onnx
    import torch
    from onnx import helper, numpy_helper

    def torch_arrays(path):
        loaded = torch.load(path, weights_only=True)
        return {name: tensor.numpy() for name, tensor in loaded.items()}

    for round_ in range(context.rounds(20, 4)):
        arrays = random_arrays(context)
        folder = context.folder
        problems = {}

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name in list(tensors):  # views of all kinds, and a tied one
            view = tensors[name]
            tensors[f"{name} transposed"] = view.movedim(0, -1)
            tensors[f"{name} part"] = view[..., context.random.randrange(view.shape[-1]) :]
            tensors[f"{name} expanded"] = view[:1].expand(3, *view.shape[1:])
            tensors[f"{name} tied"] = view
        for zipped in (True, False):
            path = folder / "x.pth"
            saved = {"epoch": 3, "state_dict": tensors} if round_ % 2 else tensors
            torch.save(saved, path, _use_new_zipfile_serialization=zipped)
            loaded = torch.load(path, weights_only=True)
            loaded = loaded["state_dict"] if round_ % 2 else loaded
            wanted = {name: tensor.numpy() for name, tensor in loaded.items()}
            problems["torch zip" if zipped else "torch legacy"] = compare(context, path, wanted)

        mixed = {}
        for name, array in arrays.items():
            array = array.astype(array.dtype.newbyteorder(context.random.choice("<>")))
            mixed[name] = np.asfortranarray(array) if context.random.random() < 0.5 else array
        for function in (np.savez, np.savez_compressed):
            path = folder / "x.npz"
            function(path, **mixed)
            with np.load(path) as back:
                wanted = {name: back[name] for name in back.files}
            problems[function.__name__] = compare(context, path, wanted)

        for libver in ("earliest", ("v110", "v110")):
            path = folder / "x.h5"
            with h5py.File(path, "w", libver=libver) as file:
                for name, array in mixed.items():
                    options = context.random.choice(
                        [{}, {"chunks": True}, {"compression": "gzip", "shuffle": True}]
                    )
                    file.create_dataset(name.replace(".", "/"), data=array, **options)
            wanted = {}
            with h5py.File(path) as file:
                visit = lambda n, o: wanted.update({n: o[()]} if isinstance(o, h5py.Dataset) else {})
                file.visititems(visit)
            problems[f"h5py {libver}"] = compare(context, path, wanted)

        for raw in (True, False):
            path = folder / "x.onnx"
            initializers = []
            for name, array in arrays.items():
                if raw:
                    initializers.append(numpy_helper.from_array(array, name))
                else:
                    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
                    initializers.append(helper.make_tensor(name, kind, array.shape, array.ravel()))
            graph = helper.make_graph([], "x", [], [], initializers)
            onnx.save(helper.make_model(graph), path)
            back = onnx.load(path).graph.initializer
            wanted = {t.name: numpy_helper.to_array(t) for t in back}
            problems["onnx raw" if raw else "onnx typed"] = compare(context, path, wanted)

        path = folder / "x.gguf"
        writer = gguf.GGUFWriter(path, "test")
        for name, array in arrays.items():
            if array.dtype in (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32):
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        wanted = {t.name: np.asarray(t.data).reshape(t.shape[::-1]) for t in gguf.GGUFReader(path).tensors}
        problems["gguf"] = compare(context, path, wanted)

        for label, problem in problems.items():
            yield f"{label}, round {round_}", problem
