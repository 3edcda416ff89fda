# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Safetensors files: listing, converting, refusing, shards."""

import json
import math
import string
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.numpy import save_file

from damaged_files import mutated, raw_table, table
from support import (
    BF16,
    CODES,
    F16,
    F32,
    F64,
    FLOAT_TARGETS,
    WRITABLE,
    check,
    convert,
    crc,
    differing,
    first_difference,
    join_header,
    split_header,
    summary,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"

# Those that `convert` converts. Floats of less than a byte it refuses by name, the rest it keeps.
CONVERTIBLE = {
    "F64": F64,
    "F32": F32,
    "F16": F16,
    "BF16": BF16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
REFUSED = ("F4", "F6_E2M3", "F6_E3M2")


# ---- random files ------------------------------------------------------------


def random_text(rng):
    pools = [
        string.ascii_letters + "._/:0123456789",
        string.printable,
        "".join(map(chr, range(0x00, 0x100))),
        "äöüßéñ重み偏り🧠🙂\u200b\u2028\ufeff\u202e\U0010ffff",
    ]
    pool = rng.choice(pools)
    return "".join(rng.choice(pool) for _ in range(rng.choice([0, 1, 3, 10, 30, 200])))


def random_shape(rng, most):
    rank = rng.choice([0, 1, 1, 2, 2, 3, 4, 4, 5, 9])
    shape = []
    for _ in range(rank):
        room = most // max(math.prod(shape), 1)
        shape.append(rng.choice([0, 1, 2, 3, rng.randint(1, 40), room]))
        shape[-1] = min(shape[-1], room)
    return shape


def random_payload(context, code, shape):
    """Values as an array; for dtypes that numpy lacks, their bytes."""
    count = math.prod(shape)
    if code == "BOOL":
        return context.numpy.integers(0, 2, count).astype(bool)
    if code in ("F64", "F32") and context.random.random() < 0.5:
        # Numbers near the ranges of the 16-bit types, which random bits miss.
        exponents = context.numpy.uniform(-45, 20, count)
        signs = context.numpy.choice([-1.0, 1.0], count)
        return (signs * np.exp2(exponents)).astype(CONVERTIBLE[code])
    itemsize = 1 if code == "F4" else np.dtype(numpy_dtype(code)).itemsize
    return np.frombuffer(context.numpy.bytes(count * itemsize), np.uint8)


def numpy_dtype(code):
    return getattr(ml_dtypes, WRITABLE[code], None) or np.dtype(WRITABLE[code])


def write_random(context, path, codes=tuple(WRITABLE), most=3000):
    """A random file by the library's writer; returns its bytes."""
    rng = context.random
    arrays, specs = [], {}
    for _ in range(rng.choice([0, 1, 2, 5, 20, 60])):
        name = random_text(rng)
        if name == "__metadata__" or name in specs:
            continue
        code = rng.choice(codes)
        shape = random_shape(rng, rng.choice([10, 100, most]))
        if code == "F4" and not shape:
            shape = [2]  # half a byte cannot be written
        arrays.append(random_payload(context, code, shape))
        specs[name] = safetensors.TensorSpec(
            dtype=WRITABLE[code],
            shape=shape,
            data_ptr=arrays[-1].ctypes.data,
            data_len=arrays[-1].nbytes,
        )
    metadata = None
    if rng.random() < 0.5:
        # Without tensors an empty one would come out as broken JSON.
        metadata = {random_text(rng): random_text(rng) for _ in range(rng.randint(1, 3))}
    blob = serialize_sorted(specs, metadata)
    if rng.random() < 0.5:
        blob = respelt(blob, rng)
    path.write_bytes(blob)
    return blob


def serialize_sorted(specs, metadata):
    """The library's bytes; its order of the metadata is random, a check's is not."""
    while True:
        blob = safetensors.serialize(specs, metadata)
        pairs = dict(json.loads(split_header(blob)[0], object_pairs_hook=list))
        keys = [key for key, _ in pairs.get("__metadata__", [])]
        if keys == sorted(keys):
            return blob


def respelt(blob, rng):
    """The same file with its header in another order and spelling.

    Other writers do not sort, pad or escape as this one does.
    """
    header, data = split_header(blob)
    pairs = json.loads(header, object_pairs_hook=list)
    rng.shuffle(pairs)
    entries = {name: dict(shuffled(value, rng)) for name, value in pairs}
    text = json.dumps(entries, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 1]))
    space = ["", " ", "\n", " \t\r\n  "]
    return join_header((rng.choice(space) + text + rng.choice(space)).encode(), data)


def shuffled(values, rng):
    return rng.sample(values, len(values))


def header_names(blob):
    pairs = json.loads(split_header(blob)[0], object_pairs_hook=list)
    return [name for name, _ in pairs if name != "__metadata__"]


def listing(blob):
    """What `inspect` should list, from the library's reader."""
    tensors = dict(safetensors.deserialize(blob))
    return [
        {
            "name": name,
            "dtype": tensors[name]["dtype"],
            "shape": list(tensors[name]["shape"]),
            "bytes": len(tensors[name]["data"]),
            "crc32": crc(tensors[name]["data"]),
        }
        for name in header_names(blob)
    ]


def inspect_problem(context, path, wanted, format="safetensors"):
    outcome = context.run("inspect", path, "--json", "--digest")
    if problem := outcome.accepted():
        return problem
    got = outcome.json()
    if got.get("format") != format or got.get("file") != str(path):
        return f"format {got.get('format')!r}, file {got.get('file')!r}"
    return first_difference(got.get("tensors"), wanted)


# ---- listing -----------------------------------------------------------------


@check
def check_listing(context):
    path = context.folder / "random.safetensors"
    problems = []
    total = context.rounds(150, 30)
    for _ in range(total):
        blob = write_random(context, path)
        if problem := inspect_problem(context, path, listing(blob)):
            problems.append(problem)
    yield f"{total} random files", summary(problems, total, "files differ")

    files = sorted(FIXTURES.rglob("*.expected.json"))
    problems = []
    for expected in files:
        path = expected.with_name(expected.name.removesuffix(".expected.json"))
        wanted = json.loads(expected.read_text())
        if problem := inspect_problem(context, path, wanted["tensors"], wanted["format"]):
            problems.append(f"{path.name}: {problem}")
    yield f"{len(files)} fixtures", summary(problems, len(files), "fixtures differ")

    outcome = context.run("inspect", FIXTURES / "mixed.safetensors", "--json")
    problem = outcome.accepted()
    if not problem and any("crc32" in entry for entry in outcome.json()["tensors"]):
        problem = "crc32 without --digest"
    yield "no digest unless asked", problem
    yield "plain text", context.run("inspect", FIXTURES / "mixed.safetensors").accepted()


# ---- converting --------------------------------------------------------------


def metadata_of(path):
    with safetensors.safe_open(path, framework="np") as file:
        return file.metadata()


def as_array(tensor):
    dtype = CONVERTIBLE[tensor["dtype"]]
    return np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])


def conversion_problem(source_blob, source_metadata, output, dtype):
    """Compares a converted file, read by the library, with its source."""
    blob = output.read_bytes()
    source = dict(safetensors.deserialize(source_blob))
    result = dict(safetensors.deserialize(blob))
    if header_names(blob) != header_names(source_blob):
        return f"names or order: {header_names(blob)[:5]} for {header_names(source_blob)[:5]}"
    # The library tells no metadata from empty ones; so may the output.
    if (metadata_of(output) or {}) != (source_metadata or {}):
        return f"metadata {metadata_of(output)} for {source_metadata}"
    for name, old in source.items():
        new = result[name]
        if new["shape"] != old["shape"]:
            return f"{name!r}: shape {new['shape']} for {old['shape']}"
        if dtype == "keep" or old["dtype"] not in CONVERTIBLE or old["dtype"] == CODES[dtype]:
            if (new["dtype"], new["data"]) != (old["dtype"], old["data"]):
                return f"{name!r}: {old['dtype']} not kept, {new['dtype']}"
            continue
        if new["dtype"] != CODES[dtype]:
            return f"{name!r}: dtype {new['dtype']} for {CODES[dtype]}"
        before = as_array(old)
        wanted, got = convert(before, FLOAT_TARGETS[dtype]), as_array(new)
        bad = np.flatnonzero(differing(got, wanted))
        if bad.size:
            at = bad[0]
            values = f"{before.flat[at]!r} gives {wanted.flat[at]!r}, got {got.flat[at]!r}"
            return f"{name!r}[{at}], {old['dtype']}: {values}"
    return None


@check
def check_reference(context):
    """The checks' own rounding, against the exact values of the fixtures."""
    problems = []
    for path in sorted(FIXTURES.glob("rounding_*_as_*.safetensors")):
        source, dtype = path.stem.split("_as_")
        before = dict(safetensors.deserialize((FIXTURES / f"{source}.safetensors").read_bytes()))
        for name, tensor in safetensors.deserialize(path.read_bytes()):
            wanted = convert(as_array(before[name]), FLOAT_TARGETS[dtype])
            if differing(wanted, as_array(tensor)).any():
                problems.append(f"{path.name} {name}")
    yield "rounding as in the fixtures", summary(problems, 1, "tensors differ")


@check
def check_convert(context):
    path = context.folder / "in.safetensors"
    output = context.folder / "out.safetensors"
    total = context.rounds(40, 8)
    problems = {dtype: [] for dtype in ("f32", "f16", "bf16", "keep")}
    for _ in range(total):
        whole = tuple(code for code in WRITABLE if code not in REFUSED)
        codes = context.random.choice([whole, tuple(CONVERTIBLE)])
        blob = write_random(context, path, codes, most=200_000)
        metadata = metadata_of(path)
        for dtype, found in problems.items():
            outputs = set()
            for threads in (None, 1, 2, 7):
                output.unlink(missing_ok=True)
                count = ("--threads", threads) if threads else ()
                outcome = context.run("convert", path, output, "--dtype", dtype, *count)
                problem = outcome.accepted() or conversion_problem(blob, metadata, output, dtype)
                if problem:
                    found.append(f"threads {threads}: {problem}")
                    break
                outputs.add(output.read_bytes())
            if len(outputs) > 1:
                found.append("the number of threads changes the output")
    for dtype, found in problems.items():
        yield f"{total} random files to {dtype}", summary(found, total, "files differ")

    output.unlink(missing_ok=True)
    outcome = context.run("convert", FIXTURES / "f4.safetensors", output)
    yield "floats of less than a byte", outcome.refused() or (output.exists() and "left a file")

    problems = []
    cases = sorted(FIXTURES.glob("rounding_*_as_*.safetensors"))
    for wanted in cases:
        source, dtype = wanted.stem.split("_as_")
        output.unlink(missing_ok=True)
        source = FIXTURES / f"{source}.safetensors"
        problem = context.run("convert", source, output, "--dtype", dtype).accepted()
        if not problem and listing(output.read_bytes()) != listing(wanted.read_bytes()):
            problem = "differs"
        if problem:
            problems.append(f"{wanted.name}: {problem}")
    yield "rounding fixtures", summary(problems, len(cases), "files differ")

    blob = (FIXTURES / "mixed.safetensors").read_bytes()
    path.write_bytes(blob)
    metadata = metadata_of(path)
    outcome = context.run("convert", path, path, "--dtype", "f16")
    # Either is right; what must not be is a damaged file or a crash.
    if outcome.code == 0:
        problem = conversion_problem(blob, metadata, path, "f16")
    else:
        problem = outcome.refused() or (path.read_bytes() != blob and "input damaged")
    yield "onto itself", problem


# ---- refusing ----------------------------------------------------------------


class Repeated(Exception):
    """A key occurs twice in an object."""


def pairs_once(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        raise Repeated
    return result


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def may_be_refused(header):
    """Whether a header that the library accepts may be refused all the same.

    Repeated keys, unknown fields, deep nesting, and two spellings that are an
    artefact of the library's parser: an entry as an array, a dtype as a map.
    """
    try:
        entries = json.loads(header, object_pairs_hook=pairs_once)
    except (Repeated, RecursionError):
        return True
    entries.pop("__metadata__", None)
    fields = {"dtype", "shape", "data_offsets"}
    return depth(entries) > 3 or any(
        not isinstance(entry, dict) or set(entry) != fields or not isinstance(entry["dtype"], str)
        for entry in entries.values()
    )


def library_accepts(blob):
    try:
        return dict(safetensors.deserialize(blob)) is not None
    except safetensors.SafetensorError:
        return False


def verdict_problem(context, path, blob):
    """Compares the verdict of `inspect` on any bytes with the library's."""
    path.write_bytes(blob)
    outcome = context.run("inspect", path, "--json", "--digest")
    if outcome.code not in (0, 1):
        return outcome.brief()
    if outcome.code == 1 and (problem := outcome.refused(str(path))):
        return problem
    if not library_accepts(blob):
        return None if outcome.code == 1 else "accepted, refused by the library"
    if may_be_refused(split_header(blob)[0]):
        return None
    if outcome.code == 1:
        return f"accepted by the library: {outcome.brief()}"
    return outcome.accepted() or first_difference(outcome.json()["tensors"], listing(blob))


@check
def check_refusals(context):
    path = context.folder / "case.safetensors"
    cases = [(label, join_header(header.encode(), data)) for label, header, data in table()]
    cases += raw_table()
    problems = []
    for label, blob in cases:
        if problem := verdict_problem(context, path, blob):
            problems.append(f"{label}: {problem}")
    yield f"table of {len(cases)} files", summary(problems, len(cases), "verdicts are wrong")
    for problem in problems[1:]:
        yield "table, also", problem

    problems = []
    seeds = []
    while len(seeds) < 20:
        blob = write_random(context, path, most=20)
        seeds += [blob] if len(blob) < 1200 else []
    total = context.rounds(3000, 400)
    for number in range(total):
        blob = mutated(context.random.choice(seeds), context.random)
        if problem := verdict_problem(context, path, blob):
            problems.append(f"number {number}: {problem}; file {blob.hex()}")
    yield f"{total} mutations", summary(problems, total, "verdicts are wrong")

    # What `inspect` refuses, `convert` must refuse, and leave nothing behind.
    problems = []
    output = context.folder / "never.safetensors"
    total = context.rounds(200, 40)
    for _ in range(total):
        blob = mutated(context.random.choice(seeds), context.random)
        if library_accepts(blob):
            continue
        path.write_bytes(blob)
        problem = context.run("convert", path, output, "--dtype", "f16").refused(str(path))
        left = sorted(p.name for p in context.folder.iterdir() if p != path)
        if problem or left:
            problems.append(problem or f"left behind: {left}")
            for name in left:
                (context.folder / name).unlink()
    yield "convert leaves nothing of a refused file", summary(problems, total, "files")


# ---- shards ------------------------------------------------------------------


def write_shards(context, folder, tensors, limit):
    """Shards and index as huggingface_hub writes them; returns the index."""
    folder.mkdir()
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for filename, names in split.filename_to_tensors.items():
        shard = {name: tensors[name] for name in names}
        save_file(shard, folder / filename, metadata={"format": "np"})
    # save_torch_state_dict writes exactly this text, but needs torch.
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return path


def random_arrays(context, count):
    dtypes = [F64, F32, F16, BF16, np.dtype(np.int64), np.dtype(np.uint8)]
    arrays = {}
    for number in range(count):
        shape = random_shape(context.random, 200)
        values = context.numpy.uniform(0, 100, shape)
        arrays[f"{random_text(context.random)}.{number}"] = np.asarray(
            values, context.random.choice(dtypes), order="C"
        )
    return arrays


@check
def check_shards(context):
    total = context.rounds(20, 4)
    problems = []
    for number in range(total):
        arrays = random_arrays(context, context.random.randint(5, 40))
        folder = context.folder / f"good {number}"
        path = write_shards(context, folder, arrays, context.random.choice([300, 2000]))
        entries = {}
        for shard in folder.glob("*.safetensors"):
            entries |= {entry["name"]: entry for entry in listing(shard.read_bytes())}
        order = json.loads(path.read_text())["weight_map"]
        if problem := inspect_problem(context, path, [entries[name] for name in order]):
            problems.append(problem)
            continue
        output = context.folder / "joined.safetensors"
        outcome = context.run("convert", path, output, "--dtype", "keep", "--threads", 2)
        problem = outcome.accepted()
        if not problem:
            problem = first_difference(listing(output.read_bytes()), [entries[n] for n in order])
        if problem:
            problems.append(f"convert: {problem}")
    yield f"{total} random models", summary(problems, total, "models differ")

    # Two to a shard: the first shard holds 0 and 1.
    arrays = {f"layer{number}.weight": np.full((10, 10), number, F32) for number in range(6)}
    for number, (label, words, damage) in enumerate(BROKEN_INDEXES):
        folder = context.folder / f"broken {number}"
        path = write_shards(context, folder, arrays, 900)
        index = json.loads(path.read_text())
        text = damage(folder, index)
        path.write_text(json.dumps(index) if text is None else text)
        outcome = context.run("inspect", path, "--json", "--digest")
        yield f"refuses {label}", outcome.refused(*words)

    folder = context.folder / "whole"
    path = write_shards(context, folder, arrays, 900)
    index = json.loads(path.read_text())
    del index["metadata"]
    path.write_text(json.dumps(index))
    outcome = context.run("inspect", path, "--json", "--digest")
    yield "accepts an index without metadata", outcome.accepted()


def shard_of(index, layer):
    return index["weight_map"][f"layer{layer}.weight"]


def point_to(layer, target):
    """Damage that gives the layer the path `target(folder, index)`."""

    def damage(folder, index):
        index["weight_map"][f"layer{layer}.weight"] = target(folder, index)

    return damage


def climbing(folder, index):
    """A path that leads out of the folder to a shard that is really there."""
    source = folder / shard_of(index, 1)
    (folder.parent / "outside.safetensors").write_bytes(source.read_bytes())
    return "../outside.safetensors"


def roundabout(folder, index):
    return f"../{folder.name}/{shard_of(index, 1)}"


def another_shard(folder, index):
    return shard_of(index, 5)


def absent_tensor(folder, index):
    index["weight_map"]["absent.weight"] = shard_of(index, 0)


def absent_shard(folder, index):
    (folder / shard_of(index, 2)).unlink()


def both_shards(folder, index):
    """The first shard gets a layer 2 too, which the index puts elsewhere."""
    tensors = {f"layer{layer}.weight": np.ones((10, 10), F32) for layer in range(3)}
    save_file(tensors, folder / shard_of(index, 0))


def same_key_twice(folder, index):
    pairs = [f'"{name}": "{file}"' for name, file in index["weight_map"].items()]
    pairs.append(f'"layer0.weight": "{shard_of(index, 2)}"')
    return '{"weight_map": {' + ", ".join(pairs) + "}}"


def cut_shard(folder, index):
    shard = folder / shard_of(index, 3)
    shard.write_bytes(shard.read_bytes()[:-1])


def shard_is_folder(folder, index):
    (folder / shard_of(index, 4)).unlink()
    (folder / shard_of(index, 4)).mkdir()


def paths(*cases):
    """Paths that an index must not give."""
    for label, target in cases:
        yield label, [], point_to(1, target)


def texts(*cases):
    """Index files that are no index."""
    for label, text in cases:
        yield label, [], lambda folder, index, text=text: text


# Label, what the error line must hold, and the damage; it returns a new text
# for the index, or None where it changed the index or the shards.
BROKEN_INDEXES = [
    *paths(
        ("a path with ..", climbing),
        ("a path with .. back into the folder", roundabout),
        ("an absolute path", lambda folder, index: str(folder / shard_of(index, 1))),
        ("an empty path", lambda folder, index: ""),
        ("a dot as path", lambda folder, index: "."),
        ("a path with NUL", lambda folder, index: "model\0.safetensors"),
        ("a number as path", lambda folder, index: 7),
        ("the index as its shard", lambda folder, index: "model.safetensors.index.json"),
    ),
    (
        "a tensor in another shard",
        ["layer1.weight"],
        point_to(1, lambda _, index: shard_of(index, 5)),
    ),
    ("a tensor missing from its shard", ["absent.weight"], absent_tensor),
    ("a tensor in two shards", ["layer2.weight"], both_shards),
    ("a tensor indexed twice", ["layer0.weight"], same_key_twice),
    ("a missing shard", ["-of-"], absent_shard),
    ("a shard cut short", ["-of-"], cut_shard),
    ("a folder for a shard", ["-of-"], shard_is_folder),
    *texts(
        ("no weight_map", '{"metadata": {}}'),
        ("weight_map null", '{"weight_map": null}'),
        ("weight_map as a list", '{"weight_map": []}'),
        ("an index that is a list", "[]"),
        ("an index cut short", '{"weight_map": {"layer0.weight": "model-0'),
        ("an empty index file", ""),
    ),
]
