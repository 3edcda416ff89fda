# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""PyTorch and NumPy take loaded tensors by DLPack, without a copy, and give them back."""

import ctypes
import gc
import subprocess
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import check

ROOT = Path(__file__).resolve().parents[2]


class Library:
    """The shared library with the tensors, as one version of DLPack's header compiles it."""

    def __init__(self, path, versioned):
        self.library = ctypes.CDLL(str(path))
        self.versioned = versioned
        for name in ("hand_over_mapped", "hand_over_weight"):
            function = getattr(self.library, name)
            function.restype = ctypes.c_void_p
            function.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_bool]
        self.library.hand_over_owners.restype = ctypes.c_long
        self.library.hand_over_error.restype = ctypes.c_char_p

    def take(self, function, path, name):
        pointer = getattr(self.library, function)(str(path).encode(), name.encode(), self.versioned)
        if not pointer:
            raise RuntimeError(self.library.hand_over_error().decode())
        return Handed(pointer, self.versioned)

    def owners(self):
        gc.collect()
        return self.library.hand_over_owners()


class Handed:
    """What array libraries ask for a tensor."""

    def __init__(self, pointer, versioned):
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        # The name must live as long as the capsule.
        self.name = b"dltensor_versioned" if versioned else b"dltensor"
        self.capsule = make(pointer, self.name, None)
        # Version, context, deleter and flags stand before the tensor since 1.0.
        offset = 32 if versioned else 0
        self.address = ctypes.c_void_p.from_address(pointer + offset).value

    def __dlpack__(self, **options):
        return self.capsule

    def __dlpack_device__(self):
        return (1, 0)  # the processor's memory


def newer_library(context):
    """Compiled with the header that PyTorch ships, which is later than Debian's."""
    header = Path(torch.__file__).parent / "include" / "ATen" / "dlpack.h"
    (context.folder / "dlpack").mkdir()
    (context.folder / "dlpack" / "dlpack.h").symlink_to(header)
    target = context.folder / "libhand_over_newer.so"
    line = ["c++", "-std=c++20", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    line += ["-Wno-restrict"]  # GCC 12 sees overlaps in std::string that are none
    line += [f"-I{ROOT / 'include'}", f"-I{context.folder}", str(ROOT / "tests/peers/hand_over.cpp")]
    subprocess.run([*line, "-o", str(target), "-lz", "-ldl", "-pthread"], check=True)
    return target


def is_mapped(path):
    return str(path) in Path("/proc/self/maps").read_text()


def as_bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def torch_problem(library, handed, wanted):
    """None where PyTorch sees the tensor where it is, and gives it back."""
    took = torch.from_dlpack(handed)
    if took.data_ptr() != handed.address:
        return f"a copy, at {took.data_ptr():#x} for {handed.address:#x}"
    if took.dtype != wanted.dtype or took.shape != wanted.shape:
        return f"{took.dtype} {tuple(took.shape)} for {wanted.dtype} {tuple(wanted.shape)}"
    if as_bits(took) != as_bits(wanted):
        return "other values"
    part = took[:1]
    del took, handed
    if library.owners() != 1:
        return f"{library.owners()} owners while a view is alive"
    del part
    return f"{library.owners()} owners at the end" if library.owners() else None


def numpy_problem(library, handed, wanted):
    took = np.from_dlpack(handed)
    if took.ctypes.data != handed.address:
        return "a copy"
    if took.flags.writeable:
        return "it may be written"
    if took.dtype != wanted.dtype or not np.array_equal(took, wanted, equal_nan=True):
        return f"{took.dtype} {took.shape}, or other values"
    del took, handed
    return f"{library.owners()} owners at the end" if library.owners() else None


@check
def check_dlpack(context):
    built = Library(context.build / "tests" / "libhand_over.so", False)
    newer = newer_library(context)
    path = context.folder / "tensors.safetensors"
    random = torch.Generator().manual_seed(int(context.numpy.integers(2**31)))
    tensors = {
        "f32": torch.randn(3, 4, 5, generator=random),
        "f16": torch.randn(7, 2, generator=random).half(),
        "bf16": torch.randn(6, generator=random).bfloat16(),
        "f64": torch.randn(2, 2, generator=random).double(),
        "i8": torch.randint(-100, 100, (5,), generator=random, dtype=torch.int8),
        "i64": torch.randint(-(2**60), 2**60, (2, 3), generator=random),
        "u8": torch.randint(0, 255, (8,), generator=random, dtype=torch.uint8),
    }
    save_file(tensors, path)
    fortran = context.folder / "fortran.npy"
    matrix = np.asfortranarray(context.numpy.standard_normal((6, 9)).astype(np.float32))
    np.save(fortran, matrix)
    network = context.folder / "vgg16.safetensors"
    context.run("make_checkpoint", network)
    for library in (built, Library(newer, False), Library(newer, True)):
        which = "versioned" if library.versioned else "plain"
        which += ", DLPack " + ("of Debian" if library is built else "of PyTorch")
        for name, wanted in tensors.items():
            take = lambda: library.take("hand_over_mapped", path, name)
            yield f"{which}: {name} to PyTorch", torch_problem(library, take(), wanted)
            if name != "bf16":  # NumPy has none
                problem = numpy_problem(library, take(), wanted.numpy())
                yield f"{which}: {name} to NumPy", problem
        take = lambda: library.take("hand_over_mapped", fortran, "array")
        problem = torch_problem(library, take(), torch.from_numpy(matrix))
        yield f"{which}: Fortran's order to PyTorch", problem
        yield f"{which}: Fortran's order to NumPy", numpy_problem(library, take(), matrix)
        took = np.from_dlpack(take())
        strides = None if took.strides == matrix.strides else f"{took.strides}"
        yield f"{which}: its strides", strides or (None if is_mapped(fortran) else "not mapped")
        del took
        problem = "still mapped" if library.owners() or is_mapped(fortran) else None
        yield f"{which}: the file is let go", problem

        handed = library.take("hand_over_weight", network, "fc1")
        with safe_open(network, framework="pt") as file:
            wanted = file.get_tensor("classifier.0.weight").half()
        yield f"{which}: a converted weight to PyTorch", torch_problem(library, handed, wanted)
