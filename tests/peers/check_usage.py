# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Wrong command lines, and files that are not there or cannot be written."""

from pathlib import Path

from support import check

FIXTURES = Path(__file__).parent.parent / "fixtures"


def usage_problem(outcome):
    if outcome.code != 2 or not outcome.stderr or outcome.stdout:
        return f"wanted exit 2 and a message: {outcome.brief()}"
    return None


@check
def check_usage(context):
    source = FIXTURES / "mixed.safetensors"
    output = context.folder / "out.safetensors"
    wrong = [
        ("inspect",),
        ("inspect", source, source),
        ("inspect", source, "--no-such-option"),
        ("convert", source),
        ("convert", source, output, output),
        ("convert", source, output, "--dtype"),
        ("convert", source, output, "--dtype", "f64"),
        ("convert", source, output, "--threads", "0"),
        ("convert", source, output, "--threads", "-1"),
        ("convert", source, output, "--threads", "two"),
        ("convert", source, output, "--threads", "2x"),
        ("convert", source, output, "--threads", "99999999999999999999"),
        ("load_vgg16",),
        ("load_vgg16", source, "--dtype", "keep"),
        ("load_vgg16", source, "--memory-limit", "1MB"),
        ("load_vgg16", source, "--memory-limit", "MiB"),
        ("load_vgg16", source, "--memory-limit", "-1"),
        ("load_vgg16", source, "--memory-limit", "99999999999999GiB"),
        ("make_batches",),
        ("make_batches", context.folder, "--target", "224"),
        ("make_batches", context.folder, "--rescale", "1/0"),
        ("make_batches", context.folder, "--class-mode", "input"),
        ("show_batch", context.folder),
        ("make_checkpoint",),
        ("make_checkpoint", output, "--seed", "x"),
        ("make_checkpoint", output, "--classes", "0"),
    ]
    for line in wrong:
        outcome = context.run(*line)
        problem = usage_problem(outcome) or ("an output file" if output.exists() else None)
        output.unlink(missing_ok=True)
        yield " ".join(str(word).replace(str(FIXTURES), "fixtures") for word in line), problem

    absent = context.folder / "absent.safetensors"
    newline = context.folder / "a\nb.safetensors"
    newline.write_bytes(b"nothing")
    for label, path in (("absent", absent), ("a folder", context.folder), ("newline", newline)):
        yield f"inspect, {label}", context.run("inspect", path).refused()
        yield f"convert, {label}", context.run("convert", path, output).refused()
        yield f"load_vgg16, {label}", context.run("load_vgg16", path).refused()
    nowhere = context.folder / "no such folder" / "out.safetensors"
    yield "convert, output nowhere", context.run("convert", source, nowhere).refused()
    yield "convert, output is a folder", context.run("convert", source, context.folder).refused()
    yield "make_checkpoint, output nowhere", context.run("make_checkpoint", nowhere).refused()
    left = sorted(path.name for path in context.folder.iterdir() if path != newline)
    yield "nothing left behind", f"{left}" if left else None
    yield "load_vgg16, no VGG16", context.run("load_vgg16", source).refused(str(source))
