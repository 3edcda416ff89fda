# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What every peer check needs: running the commands, and reference arithmetic.

A check is a function `check(context)` that yields `(label, problem)` pairs, one
line each; `problem` is None or says what was wrong. Register it with `@check`.
Another format adds a module of its own and names it in run_peers.py.
"""

import json
import random
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

BF16 = np.dtype(ml_dtypes.bfloat16)
F16 = np.dtype(np.float16)
F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)
MIB = 1 << 20

FLOAT_TARGETS = {"f32": F32, "f16": F16, "bf16": BF16}
CODES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}  # as the format spells them

# The format's dtypes that the library can write: its name for each.
WRITABLE = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}

CHECKS = {}


def check(function):
    """Registers a check under its name, less the "check_"."""
    CHECKS[function.__name__.removeprefix("check_")] = function
    return function


@dataclass
class Context:
    """One check's view: the commands, a random generator and a scratch folder."""

    build: Path
    folder: Path
    seed: str
    quick: bool

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.numpy = np.random.default_rng(zlib.crc32(self.seed.encode()))

    def rounds(self, full, quick):
        return quick if self.quick else full

    def run(self, command, *arguments, address_space=None, timeout=300):
        """Runs one example command; with a limit in bytes on its address space."""
        line = [str(self.build / "examples" / command), *map(str, arguments)]
        if address_space is not None:
            limit = f"ulimit -v {address_space // 1024} && exec " + '"$@"'
            line = ["bash", "-c", limit, "bash", *line]
        done = subprocess.run(line, capture_output=True, timeout=timeout)
        return Outcome(command, done.returncode, done.stdout, done.stderr)

    def peak_rss(self, command, *arguments):
        """The outcome, and the most memory the process held, as the kernel saw it.

        The kernel counts what a process held before its exec too, so the
        command is started by a process that is itself small.
        """
        line = [str(self.build / "examples" / command), *map(str, arguments)]
        launcher = [sys.executable, "-S", "-E", "-c", LAUNCHER, *line]
        done = subprocess.run(launcher, capture_output=True, timeout=300)
        *stderr, measured = done.stderr.splitlines(keepends=True)
        code, kibibytes = map(int, measured.split())
        return Outcome(command, code, done.stdout, b"".join(stderr)), kibibytes * 1024


LAUNCHER = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, file=sys.stderr)
"""


@dataclass
class Outcome:
    command: str
    code: int
    stdout: bytes
    stderr: bytes

    def brief(self):
        text = self.stderr.decode(errors="replace").strip()
        return f"{self.command} exit {self.code}: {text[:300]!r}"

    def accepted(self):
        """None where the command succeeded and said nothing but that values overflowed."""
        warned = re.fullmatch(rb"warning: [^\n]* became infinite [^\n]*\n", self.stderr)
        return None if self.code == 0 and (warned or not self.stderr) else self.brief()

    def refused(self, *words):
        """None where the input was refused with one line that holds `words`."""
        if self.code != 1:
            return f"wanted exit 1: {self.brief()}"
        text = self.stderr.decode(errors="replace")
        if not text.startswith("error: ") or not text.endswith("\n"):
            return f"no error line: {self.brief()}"
        # Any control character could split or repaint the line on a terminal.
        if re.search(r"[\x00-\x1f\x7f]", text[:-1]):
            return f"more than one line: {self.brief()}"
        if self.stdout:
            return f"output in spite of an error: {self.stdout[:80]!r}"
        missing = [word for word in words if word not in text]
        return f"no {missing} in {self.brief()}" if missing else None

    def json(self):
        return json.loads(self.stdout)


def summary(problems, total, what):
    """One problem for a whole series, or None."""
    if not problems:
        return None
    return f"{len(problems)} of {total} {what}; first: {problems[0]}"


def crc(data):
    return f"{zlib.crc32(data):08x}"


def first_difference(got, wanted):
    """None, or where two lists of listing entries part."""
    if got == wanted:
        return None
    if not isinstance(got, list) or len(got) != len(wanted):
        return f"wanted {len(wanted)} tensors, got {str(got)[:200]}"
    pairs = ((g, w) for g, w in zip(got, wanted) if g != w)
    return "wanted {1}, got {0}".format(*next(pairs))


# ---- reference rounding ------------------------------------------------------


def to_bf16(source):
    """`source` as BF16, rounded once.

    ml_dtypes takes F64 through F32 and rounds twice. Rounding to odd on the way
    makes that harmless: F32 keeps more than two bits beyond BF16 everywhere.
    """
    if source.dtype != F64:
        return source.astype(BF16)
    near = source.astype(F32)
    exact = near.astype(F64)
    bits = near.view(np.uint32)
    move = (exact != source) & (bits % 2 == 0) & ~np.isnan(source)
    toward_zero = np.abs(exact) > np.abs(source)
    odd = np.where(move, np.where(toward_zero, bits - 1, bits + 1), bits)
    return odd.astype(np.uint32).view(F32).astype(BF16)


def convert(source, dtype):
    with np.errstate(all="ignore"):
        if dtype == BF16:
            return to_bf16(source)
        return source.astype(dtype)


def differing(got, wanted):
    """Where two arrays differ in a bit, with any NaN standing for any other."""
    bits = np.dtype(f"uint{got.dtype.itemsize * 8}")
    with np.errstate(invalid="ignore"):
        nan = np.isnan(got) & np.isnan(wanted)
    return ~nan & (got.view(bits) != wanted.view(bits))


# ---- safetensors headers -----------------------------------------------------


def split_header(blob):
    (length,) = struct.unpack_from("<Q", blob)
    return blob[8 : 8 + length], blob[8 + length :]


def join_header(header, data):
    return struct.pack("<Q", len(header)) + header + data
