# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Safetensors files that a reader must judge: a table, and random damage."""

import json
import re

from support import WRITABLE, join_header, split_header


def u8(shape="[1]", offsets="[0,1]", extra=""):
    return f'{{"dtype":"U8","shape":{shape},"data_offsets":{offsets}{extra}}}'


def one(entry, name='"a"'):
    return f"{{{name}:{entry}}}"


def table():
    """Label, header, data."""
    plain = one(u8())
    yield "plain", plain, b"1"

    for label, value in {
        "null": "null", "empty": "{}", "number": '{"a":1}', "null value": '{"a":null}',
        "list": "[]", "string": '"x"', "nested": '{"a":{"b":"c"}}', "control": '{"a":"\x01"}',
        "lone surrogate": '{"a":"\\ud800"}', "twice": '{"a":"b"},"__metadata__":{"a":"b"}',
        "null twice": 'null,"__metadata__":null', "key twice": '{"a":"b","a":"c"}',
    }.items():  # fmt: skip
        yield f"metadata {label}", f'{{"__metadata__":{value},"a":{u8()}}}', b"1"
    yield "metadata last", f'{{"a":{u8()},"__metadata__":{{"x":"y"}}}}', b"1"
    yield "metadata only", '{"__metadata__":{"a":"b"}}', b""
    yield "metadata only and data", '{"__metadata__":{"a":"b"}}', b"1"
    yield "metadata escaped", '{"\\u005f_metadata__":{"a":"b"}}', b""
    yield "metadata is a tensor", one(u8(), '"__metadata__"'), b"1"
    yield "the writer's broken header", '{},"__metadata__":{}}', b""

    for shape in (
        "null", "1", "{}", "[1.0]", "[1e0]", "[-0,1]", "[-1]", "[01]", "[+1]", '["1"]', "[true]",
        "[null]", "[1,]", "[,1]", "[1 1]", "[[1]]", "[0x1]", "[1.]", "[ 1 ]", "[1,1,1]",
        "[2]", "[0]", "[]", "[" + "1," * 40 + "1]",
        "[18446744073709551615]", "[18446744073709551616]", "[2305843009213693952]",
        "[2305843009213693953]", "[18446744073709551615,2]", "[4294967296,4294967297]",
    ):  # fmt: skip
        yield f"shape {shape[:40]}", one(u8(shape)), b"1"
    for shape in (
        "[0]", "[-0]", "[0.0]", "[0,18446744073709551615]", "[0,18446744073709551615,2]",
        "[18446744073709551615,0]", "[18446744073709551615,2,0]", "[18446744073709551616,0]",
        "[4294967296,4294967296,0]", "[2305843009213693952,0]", "[2305843009213693952]",
    ):  # fmt: skip
        yield f"shape {shape} without data", one(u8(shape, "[0,0]")), b""

    for offsets in (
        "null", "[]", "[0]", "[0,1,1]", "[1,0]", "[0.0,1]", "[0,1.0]", "[0,1e0]", "[-0,1]",
        "[-1,1]", '{"0":0,"1":1}', '["0","1"]', "[0,2]", "[1,2]", "[0,0]", "[1,1]",
        "[0,18446744073709551615]", "[18446744073709551615,0]",
        "[18446744073709551615,18446744073709551616]", "[ 0\n,\t1\r]",
    ):  # fmt: skip
        yield f"offsets {offsets!r}", one(u8(offsets=offsets)), b"1"
        yield f"offsets {offsets!r} of nothing", one(u8("[0]", offsets)), b"1"

    for dtype in (
        '"u8"', '"UINT8"', '""', "null", "8", '["U8"]', '{"U8":null}', '"U\\u0038"', '"F128"',
    ):  # fmt: skip
        yield f"dtype {dtype}", one(u8().replace('"U8"', dtype)), b"1"
    sizes = dict.fromkeys(("BOOL", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8)
    sizes |= dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    sizes |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
    sizes |= {"I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64}
    for dtype, bits in sizes.items():
        for count in (0, 1, 2, 3, 4):
            for size in {bits * count // 8, -(-bits * count // 8), bits * count // 8 + 1}:
                entry = u8(f"[{count}]", f"[0,{size}]").replace("U8", dtype)
                yield f"{dtype} {count} in {size} bytes", one(entry), bytes(size)
    for shape in ("[]", "[1,0]", "[1,2]", "[3,3]"):
        for size in (0, 1, 4, 5):
            entry = u8(shape, f"[0,{size}]").replace("U8", "F4")
            yield f"F4 {shape} in {size} bytes", one(entry), bytes(size)

    for field in ("dtype", "shape", "data_offsets"):
        entry = json.loads(u8())
        del entry[field]
        yield f"no {field}", one(json.dumps(entry)), b"1"
        yield f"{field} in capitals", plain.replace(field, field.upper()), b"1"
    for label, extra in {
        "unknown field": ',"x":3', "bad unknown field": ',"x":nan', "open field": ',"x":"',
        "twice dtype": ',"dtype":"U8"', "twice shape": ',"shape":[1]',
        "nested": ',"x":' + "[" * 50 + "]" * 50, "too deep": ',"x":' + "[" * 5000 + "]" * 5000,
        "too deep, open": ',"x":' + "[" * 200000, "deep objects": ',"x":' + '{"a":' * 100000,
    }.items():  # fmt: skip
        yield f"entry {label}", one(u8(extra=extra)), b"1"
    for entry in ("null", "1", "[]", "{}", '"U8"', '["U8",[1],[0,1]]', "[" * 300000):
        yield f"entry {entry[:30]}", one(entry), b"1"

    for label, name in {
        "empty": '""', "surrogate pair": '"\\ud83d\\ude00"', "lone high": '"\\ud800"',
        "lone low": '"\\udc00"', "high and letter": '"\\ud800\\u0041"',
        "high and high": '"\\ud800\\ud800"', "nul": '"\\u0000"',
        "raw nul": '"\x00"', "raw newline": '"\n"', "raw DEL": '"\x7f"',
        "newline": '"\\n"', "solidus": '"\\/"', "bad escape": '"\\x41"', "short escape": '"\\u00e"',
        "capital U": '"\\U0041"', "not hex": '"\\u00g0"', "open": '"a', "number": "1",
        "single": "'a'", "C1": '"\x85"', "separator": '"\u2028"', "BOM": '"\ufeff"',
        "last code point": '"\U0010ffff"',
    }.items():  # fmt: skip
        yield f"name {label}", one(u8(), name), b"1"
        yield f"name {label}, refused", one(u8("[2]"), name), b"1"

    for label, before, after in (
        ("space", " ", " "), ("all space", " \t\r\n", "\n\r\t "), ("form feed", "", "\f"),
        ("form feed before", "\f", ""), ("NUL", "", "\0"), ("NUL before", "\0", ""),
        ("comma", "", ","), ("brace", "", "}"), ("object", "", "{}"), ("BOM", "\ufeff", ""),
        ("no-break space", "\u00a0", ""), ("comment", "", "//"), ("letter", "x", ""),
    ):  # fmt: skip
        yield f"around: {label}", before + plain + after, b"1"
    for header in (
        "", " ", "{", "}", "{ }", " {}", "[]", "null", "1", '""', "{,}", '{"a"}', '{"a":}',
    ):  # fmt: skip
        yield f"header {header!r}", header, b""
        yield f"header {header!r} and data", header, b"1"

    def two(a, b, names=("a", "b")):
        return f'{{"{names[0]}":{u8(*a)},"{names[1]}":{u8(*b)}}}'

    yield "data too long", plain, b"12"
    yield "data too short", plain, b""
    yield "hole before", one(u8(offsets="[1,2]")), b"12"
    yield "hole between", two(("[1]", "[0,1]"), ("[1]", "[2,3]")), b"123"
    yield "overlap", two(("[2]", "[0,2]"), ("[2]", "[1,3]")), b"123"
    yield "inside", two(("[3]", "[0,3]"), ("[1]", "[1,2]")), b"123"
    yield "shared", two(("[2]", "[0,2]"), ("[2]", "[0,2]")), b"12"
    yield "backwards", two(("[2]", "[2,4]"), ("[2]", "[0,2]")), b"1234"
    yield "nothing at the end", two(("[2]", "[0,2]"), ("[0]", "[2,2]")), b"12"
    yield "nothing at the start", two(("[2]", "[0,2]"), ("[0]", "[0,0]")), b"12"
    yield "nothing inside", two(("[2]", "[0,2]"), ("[0]", "[1,1]")), b"12"
    yield "nothing past the end", two(("[2]", "[0,2]"), ("[0]", "[3,3]")), b"12"
    yield "nothing twice", two(("[0]", "[0,0]"), ("[0,5]", "[0,0]")), b""
    yield "same name, same place", two(("[1]", "[0,1]"), ("[1]", "[0,1]"), ("a", "a")), b"1"
    yield "same name, next place", two(("[1]", "[0,1]"), ("[1]", "[1,2]"), ("a", "a")), b"12"
    yield "same name, escaped", two(("[1]", "[0,1]"), ("[1]", "[0,1]"), ("a", "\\u0061")), b"1"
    unaligned = one(u8() + ',"b":' + u8("[1]", "[1,5]").replace("U8", "F32"))
    yield "not aligned", unaligned, b"12345"
    yield "BOOL of 2", one(u8().replace("U8", "BOOL")), b"\2"
    many = ",".join(f'"{number}":{u8("[0]", "[0,0]")}' for number in range(20000))
    yield "many tensors", f"{{{many}}}", b""


def raw_table():
    """Label, whole file: lengths and encodings that `table` cannot say."""
    plain = one(u8()).encode()
    whole = join_header(plain, b"1")
    for size in (*range(9), len(whole) - 2, len(whole) - 1):
        yield f"first {size} bytes", whole[:size]
    for length in (0, 1, 2, len(plain) - 1, len(plain) + 1, len(plain) + 2):
        yield f"length {length}", length.to_bytes(8, "little") + plain + b"1"
    for length in (10**8, 10**8 + 1, 2**31, 2**32, 2**63, *range(2**64 - 9, 2**64)):
        yield f"length {length}", length.to_bytes(8, "little") + plain + b"1"
    yield "big-endian length", len(plain).to_bytes(8, "big") + plain + b"1"
    for label, name in {
        "invalid": b"\xff", "overlong": b"\xc0\x80", "surrogate": b"\xed\xa0\x80", "cut": b"\xc3",
        "cut longer": b"\xf0\x9f\x98", "too large": b"\xf4\x90\x80\x80", "lone tail": b"\x80",
        "overlong of three": b"\xe0\x80\x80", "overlong of four": b"\xf0\x80\x80\x80",
    }.items():  # fmt: skip
        named = plain.replace(b'"a"', b'"' + name + b'"')
        yield f"UTF-8 {label} in a name", join_header(named, b"1")
        yield f"UTF-8 {label} after", join_header(plain + name, b"1")
        extra = plain.replace(b"]}", b'],"x":"' + name + b'"}')
        yield f"UTF-8 {label} in an unknown field", join_header(extra, b"1")


def mutated(blob, rng):
    """One small damage to a file."""
    header, data = split_header(blob)
    header = bytearray(header)
    at = rng.randrange(len(header))
    kind = rng.randrange(11)
    if kind == 0:  # a bit
        header[at] ^= 1 << rng.randrange(8)
    elif kind == 1:  # a byte that means something in JSON
        header[at] = rng.choice(b'{}[]":,\\0123456789-+.eE tfnu/\n\x00\xff')
    elif kind == 2:
        del header[at : at + rng.randint(1, 4)]
    elif kind == 3:
        header[at:at] = rng.choice(
            ['"', ",", "0", "[", "]", "{", "}", " ", "\\", "1", "é"]
        ).encode()
    elif kind == 4:
        cut = rng.randrange(len(blob))
        return blob[:cut]
    elif kind == 5:
        return blob + rng.randbytes(rng.randint(1, 9))
    elif kind == 6:  # the length, keeping the rest
        length = len(header) + rng.choice([-8, -2, -1, 1, 2, 8, len(data), len(data) + 1, 2**40])
        return max(length, 0).to_bytes(8, "little") + bytes(header) + data
    elif kind == 7:  # a number
        numbers = list(re.finditer(rb"\d+", header))
        if numbers:
            found = rng.choice(numbers)
            value = int(found[0])
            wild = [value * 2, value + 2**32, value + 2**64, 0, 2**63]
            new = rng.choice([value - 1, value + 1, *wild])
            form = rng.choice(["{}", "{}", "{}", "{}.0", "{}e0", "0{}", "-{}"])
            header[found.start() : found.end()] = form.format(new).encode()
    elif kind == 8:  # a dtype, often of the same size
        dtypes = list(re.finditer(rb'"dtype":"(\w+)"', header))
        if dtypes:
            found = rng.choice(dtypes)
            header[found.start(1) : found.end(1)] = rng.choice([*WRITABLE, "F6_E2M3", "X"]).encode()
    elif kind == 9:  # two numbers change places
        numbers = list(re.finditer(rb"\d+", header))
        if len(numbers) > 1:
            first, second = sorted(rng.sample(numbers, 2), key=lambda match: match.start())
            header[second.start() : second.end()] = first[0]
            header[first.start() : first.end()] = second[0]
    else:  # data and header part at another place
        data = data[1:] if rng.random() < 0.5 else b"\0" + data
    return join_header(bytes(header), data)
