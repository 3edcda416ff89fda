# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""What `load_vgg16 --dump` writes, read by the viewers' own readers."""

import json
import pickle
import re
import subprocess
import time
import xml.dom.minidom
from pathlib import Path

import jsonschema
import numpy as np
from safetensors.numpy import save_file
from torch.cuda import _memory_viz

from check_vgg16 import random_network, torchvision_names
from support import BF16, CODES, F16, F32, F64, FLOAT_TARGETS, check, convert

HERE = Path(__file__).parent
TENSORFLOW = HERE.parents[1] / "build" / "tensorflow-venv" / "bin" / "python"
SCHEMA = json.loads((HERE / "trace_event_schema.json").read_text())

FILES = {
    "memory.collapsed",
    "memory.perfetto.json",
    "memory.memory_viz.pickle",
    "memory.svg",
    "health.json",
}
OUT_OF_MEMORY = {"out_of_memory.json", "out_of_memory.txt"}
TFDBG = {"metadata", "source_files", "stack_frames", "graphs", "execution", "graph_execution_traces"}

TENSORFLOW_TYPES = {F32: 1, F64: 2, BF16: 14, F16: 19}
FULL_HEALTH = 4
SMALLEST_NORMAL = {F16: 2.0**-14, BF16: 2.0**-126, F32: 2.0**-126}


# ---- the readers -------------------------------------------------------------


def read_collapsed(text):
    """The stacks as both of the usual programs take them, which must agree."""
    stacks = []
    for line in text.splitlines():
        # speedscope: src/import/bg-flamegraph.ts
        name, count = re.fullmatch(r"(.*) (\d+)", line).groups()
        # flamegraph.pl, which takes a second number for a difference
        again = re.match(r"^(.*)\s+?(\d+(?:\.\d*)?)$", line)
        if again.groups() != (name, count) or re.match(r"^(.*)\s+?(\d+(?:\.\d*)?)$", name):
            raise ValueError(f"flamegraph.pl sees something else in {line!r}")
        role, layer, tensor = name.split(";")
        stacks.append((role, layer, tensor, int(count)))
    return stacks


def read_perfetto(text):
    """The events, checked by schema; each lifetime must begin once and end once after."""
    document = json.loads(text)
    jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    events = document["traceEvents"]
    times = [event["ts"] for event in events if "ts" in event]
    if times != sorted(times):
        raise ValueError("the events are not in order")
    open_, closed = {}, {}
    for event in events:
        key = (event.get("cat"), event.get("id"), event["name"])
        if event["ph"] == "b":
            if key in open_ or key in closed:
                raise ValueError(f"{key} begins twice")
            open_[key] = event
        elif event["ph"] == "e":
            closed[key] = open_.pop(key)
    if open_:
        raise ValueError(f"no end of {list(open_)[:1]}")
    return events, list(closed.values())


def peak(events):
    """The most of the counter "memory", and of "mapped files"."""
    most = {"memory": 0, "mapped files": 0}
    for event in events:
        if event["ph"] == "C" and event["name"] in most:
            most[event["name"]] = max(most[event["name"]], sum(event["args"].values()))
    return most["memory"], most["mapped files"]


def read_memory_viz(data):
    """The snapshot, after torch's own functions went over it."""
    snapshot = pickle.loads(data)
    texts = [_memory_viz.segsum(snapshot), _memory_viz.trace(snapshot)]
    lines = []
    _memory_viz.segments(snapshot, format_flamegraph=lines.append)
    _memory_viz.memory(snapshot, format_flamegraph=lines.append)
    pages = [
        _memory_viz.trace_plot(snapshot),
        _memory_viz.trace_plot(snapshot, plot_segments=True),
        _memory_viz.segment_plot(snapshot),
    ]
    if not all(texts) or not all("snapshot.pickle" in page for page in pages):
        raise ValueError("torch renders nothing")
    # torch/utils/viz/MemoryViz.js: some versions fail where there are categories, but none "unknown".
    categories = {e["category"] for t in snapshot["device_traces"] for e in t if "category" in e}
    if categories and "unknown" not in categories:
        raise ValueError(f"categories {categories}")
    return snapshot, texts[1]


def read_tfdbg(folder):
    if not TENSORFLOW.exists():
        raise FileNotFoundError(f"{TENSORFLOW}: ./dev test --peers makes it")
    line = [TENSORFLOW, HERE / "read_tfdbg.py", folder]
    done = subprocess.run(line, capture_output=True, timeout=300)
    if done.returncode:
        raise ValueError(done.stderr.decode(errors="replace")[-500:])
    return json.loads(done.stdout)


# ---- what should be in them --------------------------------------------------


def numpy_health(name, source, target):
    """The row of health.json, but for the relative error, which is no count."""
    with np.errstate(all="ignore"):
        x, y = source.astype(F64), convert(source, target).astype(F64)
    finite = np.isfinite(x)
    small = SMALLEST_NORMAL[target]
    became = (np.abs(y) < small) & (y != 0) & (np.abs(x) >= SMALLEST_NORMAL[source.dtype])
    return {
        "name": name,
        "from": {v: CODES[k] for k, v in FLOAT_TARGETS.items()}[source.dtype],
        "to": {v: CODES[k] for k, v in FLOAT_TARGETS.items()}[target],
        "shape": list(source.shape),
        "numel": x.size,
        "neg_inf": int(np.sum(np.isneginf(x))),
        "pos_inf": int(np.sum(np.isposinf(x))),
        "nan": int(np.sum(np.isnan(x))),
        "neg": int(np.sum(finite & (x < 0))),
        "zero": int(np.sum(x == 0)),
        "pos": int(np.sum(finite & (x > 0))),
        "overflowed": int(np.sum(finite & np.isinf(y))),
        "flushed": int(np.sum(finite & (x != 0) & (y == 0))),
        "became_subnormal": int(np.sum(finite & became)),
        "max_abs": float(np.max(np.abs(x), where=finite, initial=0.0)),
    }


def file_problem(folder, more=frozenset()):
    names = {path.name for path in folder.iterdir()}
    sets = {name for name in names if name.startswith("tfdbg_events.")}
    if names - sets != FILES | more:
        return f"files {sorted(names - sets)}"
    parts = [re.fullmatch(r"tfdbg_events\.(\d{10})\.([^.]+)\.(\w+)", name) for name in sets]
    if not all(parts) or {part[3] for part in parts} != TFDBG or len(sets) != len(TFDBG):
        return f"files {sorted(sets)}"
    return None if len({part.groups()[:2] for part in parts}) == 1 else f"two sets: {sets}"


def health_problem(folder, wanted):
    rows = json.loads((folder / "health.json").read_text())["tensors"]
    got = {row["name"]: row for row in rows}
    if len(rows) != len(got) or set(got) != {row["name"] for row in wanted}:
        return f"rows {[row['name'] for row in rows]}"
    for row in wanted:
        mine = {key: got[row["name"]].get(key) for key in row}
        if mine != row:
            return f"{mine} for {row}"
        error = got[row["name"]]["max_relative_error"]
        if not 0 <= error <= 1:
            return f"{row['name']}: a relative error of {error}"
    return None


def tfdbg_problem(folder, wanted, dtype):
    read = read_tfdbg(folder)
    if abs(read["start"] - time.time()) > 600 or read["graphs"] or read["traces"]:
        return f"{read | {'executions': None}}"
    if len(read["executions"]) != len(wanted):
        return f"{len(read['executions'])} executions for {len(wanted)}"
    rows = {row["name"]: row for row in wanted}
    for execution in read["executions"]:
        row = rows.pop(execution["op_type"])
        counts = [row[k] for k in ("numel", "neg_inf", "pos_inf", "nan", "neg", "zero", "pos")]
        (output,) = execution["outputs"]
        values = [output, -1, TENSORFLOW_TYPES[dtype], len(row["shape"]), *counts]
        if execution["values"] != [values] or execution["mode"] != FULL_HEALTH:
            return f"{execution} for {values}"
        if not execution["source"].startswith(row["name"]) or len(execution["devices"]) != 1:
            return f"{execution}"
    return None


def memory_problem(folder, sizes, mapped):
    """Whether the four pictures of memory agree with each other and with the tensors' `sizes`."""
    role = "mapped_weights" if mapped else "weights"
    stacks = read_collapsed((folder / "memory.collapsed").read_text())
    weights = {tensor: size for r, _, tensor, size in stacks if r == role}
    if weights != sizes:
        return f"collapsed: {set(weights.items()) ^ set(sizes.items())}"
    events, lifetimes = read_perfetto((folder / "memory.perfetto.json").read_text())
    lived = {e["name"]: e["args"]["bytes"] for e in lifetimes if e["args"]["role"] == role}
    if lived != sizes:
        return f"perfetto: {set(lived.items()) ^ set(sizes.items())}"
    held = sum(size for r, *_, size in stacks if not r.startswith("mapped_"))
    if peak(events) != (held, sum(sizes.values()) if mapped else 0):
        return f"perfetto: a peak of {peak(events)} for {held}"
    if not any(e["ph"] == "C" and e["name"] == "resident" for e in events):
        return "perfetto: nothing resident"
    snapshot, _ = read_memory_viz((folder / "memory.memory_viz.pickle").read_bytes())
    shown = {}
    for segment in snapshot["segments"]:
        for block in segment["blocks"]:
            for frame in block["frames"]:
                shown[frame["name"]] = (block["size"], segment["device"] == 3)
    missing = {name: size for name, size in sizes.items() if shown.get(name) != (size, mapped)}
    if missing:
        return f"memory_viz: {missing}"
    allocated = {
        e["frames"][0]["name"]: e["size"]
        for trace in snapshot["device_traces"]
        for e in trace
        if e["action"] == "alloc"
    }
    if not sizes.items() <= allocated.items():
        return f"memory_viz: {set(sizes.items()) - set(allocated.items())}"
    xml.dom.minidom.parse(str(folder / "memory.svg"))
    return None


@check
def check_dump(context):
    path, folder = context.folder / "vgg16.safetensors", context.folder / "dump" / "here"
    for source in (F32, BF16) if context.quick else (F32, F16, BF16):
        tensors = random_network(context, source)[:26]
        for tensor in tensors[::3]:
            at = context.numpy.integers(tensor.size, size=9)
            with np.errstate(all="ignore"):
                values = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e-30, 1e-6, 70000])
                tensor.reshape(-1)[at] = values.astype(source)
        names = torchvision_names()[:26]
        save_file(dict(zip(names, tensors)), path)
        for target, dtype in FLOAT_TARGETS.items():
            label = f"{CODES[{v: k for k, v in FLOAT_TARGETS.items()}[source]]} as {target}"
            arguments = (path, "--dtype", target, "--no-top", "--dump", folder)
            outcome = context.run("load_vgg16", *arguments)
            yield f"{label}, files", outcome.accepted() or file_problem(folder)
            if outcome.code:
                continue
            sizes = {n: t.size * dtype.itemsize for n, t in zip(names, tensors)}
            yield f"{label}, memory", memory_problem(folder, sizes, mapped=source == dtype)
            wanted = [numpy_health(n, t, dtype) for n, t in zip(names, tensors)]
            yield f"{label}, health.json", health_problem(folder, wanted)
            yield f"{label}, TensorFlow", tfdbg_problem(folder, wanted, source)
    yield from refusals(context, path, folder, names, tensors)


def refusals(context, path, folder, names, tensors):
    """The dump of a load that ran out of memory, into the folder of one that did not."""
    needed = sum(tensor.size for tensor in tensors) * 2
    for limit in (1024, needed - 1):
        # BF16 to FP16, so that nothing is mapped.
        arguments = (path, "--dtype", "f16", "--no-top", "--dump", folder, "--memory-limit", limit)
        outcome = context.run("load_vgg16", *arguments)
        label = f"limit of {limit}"
        problem = outcome.refused(str(path)) or file_problem(folder, OUT_OF_MEMORY)
        yield f"{label}, files", problem
        if problem:
            continue
        stacks = read_collapsed((folder / "memory.collapsed").read_text())
        weights = {tensor: size for role, _, tensor, size in stacks if role == "weights"}
        sizes = {n: t.size * 2 for n, t in zip(names, tensors)}
        yield f"{label}, the plan", None if weights == sizes else f"collapsed: {weights}"
        events, _ = read_perfetto((folder / "memory.perfetto.json").read_text())
        instants = [event for event in events if event["ph"] == "i"]
        report = json.loads((folder / "out_of_memory.json").read_text())
        problem = None if len(instants) == 1 else f"{len(instants)} instants"
        if not problem:
            said = instants[0]["args"]
            # The report is of the whole block, the event of the tensor in it that is named.
            asked = (said["tensor"], said["requested"])
            if asked != (report["tensor"], sizes.get(report["tensor"])):
                problem = f"{said} for {report['tensor']}"
            elif said["message"] not in outcome.stderr.decode():
                problem = f"{said} for {outcome.brief()}"
        yield f"{label}, the event", problem
        snapshot, trace = read_memory_viz((folder / "memory.memory_viz.pickle").read_bytes())
        failed = [e for t in snapshot["device_traces"] for e in t if e["action"] == "oom"]
        problem = None
        if "OutOfMemoryError" not in trace or failed[0]["size"] != sizes[report["tensor"]]:
            problem = trace
        yield f"{label}, torch", problem
        text = (folder / "out_of_memory.txt").read_text()
        problem = None if report["tensor"] in text else text
        svg = xml.dom.minidom.parse(str(folder / "memory.svg")).toxml()
        if f"'{report['tensor']}' asked for" not in svg:
            problem = "the picture does not show it"
        yield f"{label}, for people", problem or health_problem(folder, [])
        yield f"{label}, TensorFlow", tfdbg_problem(folder, [], BF16)
