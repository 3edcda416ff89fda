# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What `--health` counts and `--overflow` does, against numpy and exact fractions."""

from fractions import Fraction

import numpy as np
from safetensors.numpy import load_file, save_file

from support import BF16, F16, F32, F64, FLOAT_TARGETS, check, convert, differing

SMALLEST_NORMAL = {F16: 2.0**-14, BF16: 2.0**-126, F32: 2.0**-126, F64: 2.0**-1022}
LARGEST = {F16: 65504.0, BF16: float.fromhex("0x1.FEp127"), F32: float.fromhex("0x1.FFFFFEp127")}


def round_up(ratio):
    """A fraction from 0 to 1, rounded up to 24 bits."""
    if ratio == 0:
        return 0.0
    exponent = 0
    while ratio * 2**exponent < 2**23:
        exponent += 1
    return float(Fraction(-((-ratio.numerator * 2**exponent) // ratio.denominator), 2**exponent))


def health(source, target):
    """What the library should say of a conversion."""
    result = convert(source, target)
    x, y = source.astype(F64), result.astype(F64)
    finite = np.isfinite(x)
    lost = finite & (x != 0) & (y == 0)
    over = finite & np.isinf(y)
    normal = np.abs(x) >= SMALLEST_NORMAL[source.dtype]
    subnormal = finite & normal & (y != 0) & (np.abs(y) < SMALLEST_NORMAL[target])
    ratios = [
        abs(Fraction(b) - Fraction(a)) / abs(Fraction(a))
        for a, b in zip(x.ravel().tolist(), y.ravel().tolist())
        if np.isfinite(a) and a != 0 and np.isfinite(b) and b != 0 and a != b
    ]
    return {
        "numel": x.size,
        "neg_inf": int(np.sum(np.isneginf(x))),
        "pos_inf": int(np.sum(np.isposinf(x))),
        "nan": int(np.sum(np.isnan(x))),
        "neg": int(np.sum(finite & (x < 0))),
        "zero": int(np.sum(x == 0)),
        "pos": int(np.sum(finite & (x > 0))),
        "overflowed": int(np.sum(over)),
        "flushed_to_zero": int(np.sum(lost)),
        "became_subnormal": int(np.sum(subnormal)),
        "max_abs": float(np.max(np.abs(x), where=finite, initial=0.0)),
        "max_relative_error": round_up(max(ratios, default=Fraction(0))),
    }


def random_values(context, dtype):
    """Numbers of every size that FP16 has and has not, among them what is rare."""
    count = context.random.randrange(1, 3000)
    scale = 2.0 ** context.random.choice([-140, -30, -20, -12, -6, 0, 12, 15, 120])
    with np.errstate(all="ignore"):
        values = (scale * context.numpy.standard_normal(count)).astype(dtype)
        for rare in (0.0, -0.0, np.inf, -np.inf, np.nan, 65520, -1e5, 1e-8):
            if context.random.random() < 0.3:
                values[context.numpy.integers(count, size=1 + count // 50)] = rare
    return values


@check
def check_precision(context):
    path, out = context.folder / "in.safetensors", context.folder / "out.safetensors"
    for round_ in range(context.rounds(40, 6)):
        arrays = {f"t{i}": random_values(context, (F32, F64, F16)[i % 3]) for i in range(3)}
        arrays["steps"] = np.arange(3)
        save_file(arrays, path)
        name, target = context.random.choice(list(FLOAT_TARGETS.items()))
        threads = context.random.choice([1, 2, 5])
        common = (path, out, "--dtype", name, "--threads", threads, "--json")
        outcome = context.run("convert", *common, "--health")
        problem = outcome.accepted()
        wanted = {key: health(a, target) for key, a in arrays.items() if a.dtype.kind == "f"}
        if not problem:
            got = {entry.pop("name"): entry for entry in outcome.json()["health"]}
            for entry in got.values():
                entry.pop("from"), entry.pop("to")
            problem = None if got == wanted else f"{got} for {wanted}"
        overflowed = sum(entry["overflowed"] for entry in wanted.values())
        if not problem and outcome.json()["overflowed"] != overflowed:
            problem = f"{outcome.json()['overflowed']} overflowed, not {overflowed}"
        if not problem and bool(outcome.stderr) != bool(overflowed):
            problem = f"{overflowed} overflowed: {outcome.brief()}"
        yield f"health as {name}, round {round_}", problem

        outcome = context.run("convert", *common, "--overflow", "saturate", "--keep-f32", "t1")
        problem = outcome.accepted()
        if not problem:
            written = load_file(out) if target != BF16 else None
            for key, array in arrays.items() if written else ():
                if array.dtype.kind != "f":
                    continue
                to = F32 if key == "t1" else target
                result = convert(array, to)
                over = np.isinf(result) & np.isfinite(array)
                result[over] = np.copysign(LARGEST[to], array[over].astype(F64)).astype(to)
                if written[key].dtype != to or differing(written[key], result).any():
                    problem = f"{key} differs"
        yield f"saturate as {name}, round {round_}", problem

        outcome = context.run("convert", *common, "--overflow", "refuse")
        order = [t["name"] for t in context.run("inspect", path, "--json").json()["tensors"]]
        first = next((key for key in order if wanted.get(key, {}).get("overflowed")), None)
        if first is None:
            yield f"refuse as {name}, round {round_}", outcome.accepted()
            continue
        over = np.isinf(convert(arrays[first], target)) & np.isfinite(arrays[first])
        index = int(np.argmax(over))
        yield f"refuse as {name}, round {round_}", outcome.refused(f"'{first}'", f"at [{index}]")
