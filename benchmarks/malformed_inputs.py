"""Malformed inputs, made from a seed: for each surface the files, and a command that reads them."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save

from qrobust.cli.main import main
from qrobust.models.resnet import resnet8
from qrobust.storage import read_json, write_sealed
from qrobust.text import printable

# Names that a terminal, Markdown, HTML, a spreadsheet, a formula or a file system might take for something else.
NAMES = (
    "a|b",
    "<script>alert(1)</script>",
    "two\nlines",
    "=1+1",
    "+cmd",
    "-rf",
    "@SUM",
    "\x1b[31mred",
    "$a_^$",
    "\udcff\udcfe",
    "\u202egpj",
    "`code`",
    "[click](x)",
    "*bold*",
    "%s%n{0}",
    "{{7*7}}",
    "tab\there",
    "bell\x07",
    " ",
    "名前",
    "n" * 240,
    "'quoted\"",
    "a;b&c",
    "\\",
    "#",
    "~",
    "CON",
    "..a",
)
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    0.5,
    "",
    "x",
    [],
    {},
    [[]],
    [None] * 3,
    {"a": {}},
    "\x1b[0m",
    [1, 2, 3],
    "nan",
)
value_info = helper.make_tensor_value_info


@dataclass(frozen=True)
class Base:
    """Whole inputs that are made once: a data set, a graph for it, and the folder of a finished run."""

    npz: Path
    graph: Path
    run: Path


@dataclass(frozen=True)
class Case:
    """A command on a malformed input.

    Attributes:
        what: which malformation, for the results.
        arguments: of `qrobust`.
        named: words of which an error must hold one.
        accepted: whether the command must accept it; None: it may, or refuse it.
    """

    what: str
    arguments: list[str]
    named: tuple[str, ...]
    accepted: bool | None = None


def save_npz(path: Path, classes: int = 3, n: int = 60, side: int = 16, **changes: Any) -> Path:
    """A small data set of flat coloured images with noise."""
    rng, labels = np.random.default_rng(0), np.arange(n) % classes
    pixels = rng.integers(0, 40, (n, side, side, 3)) + (labels * 60)[:, None, None, None]
    arrays: dict[str, Any] = {"images": pixels.astype(np.uint8), "labels": labels} | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def classifier(nodes: list[Any] | None = None, shape: tuple[Any, ...] = ("n", 3, 16, 16), **changes: Any) -> Any:
    """A linear classifier of three classes by mean colour; `nodes` go before it, from `images` to `pixels`."""
    nodes = nodes or [helper.make_node("Identity", ["images"], ["pixels"])]
    nodes = [
        *nodes,
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0, name=changes.get("name", "mean")),
        helper.make_node("MatMul", ["mean", "w"], ["logits"], name=changes.get("name", "product")),
    ]
    weights = changes.get("weights", np.eye(3, dtype=np.float32))
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([2, 3]), "axes")]
    images = value_info("images", changes.get("dtype", TensorProto.FLOAT), list(shape))
    logits = value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [images, *changes.get("inputs", [])], [logits], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=changes.get("functions", []))


def special_file(random: Random, path: Path) -> str:
    """Something at `path` that is no regular file, or leads to none."""
    kind = random.choice(["fifo", "socket", "folder", "device", "dangling", "loop"])
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path may not be long
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
        os.chdir(here)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "dangling": "/nowhere/x", "loop": path.name}[kind])
    return kind


def flipped(random: Random, content: bytes) -> bytes:
    """Content with a few bytes changed, cut off, or repeated."""
    changed = bytearray(content)
    kind = random.choice(["flip", "cut", "insert", "zeros"])
    for _ in range(random.choice([1, 3, 30])):
        at = random.randrange(max(1, len(changed)))
        if kind == "flip":
            changed[at] = random.randrange(256)
        elif kind == "insert":
            changed[at:at] = random.randbytes(random.choice([1, 8]))
        elif kind == "zeros":
            changed[at : at + 16] = bytes(16)
    return bytes(changed[: random.randrange(len(changed))] if kind == "cut" else changed)


def evaluate(base: Base, folder: Path, data: str, *more: str, graph: Path | None = None) -> list[str]:
    return [
        "evaluate-onnx",
        str(graph or base.graph),
        "--data",
        data,
        "--shifts",
        "contrast",
        "--severities",
        "5",
        "--out",
        str(folder / "out"),
        "--threads",
        "1",
        "-q",
        *more,
    ]


def quantize(base: Base, folder: Path, *more: str, data: str | None = None) -> list[str]:
    return [
        "quantize",
        "--model",
        "resnet8",
        "--data",
        data or f"npz:{base.npz}",
        "--calibration-images",
        "8",
        "--out",
        str(folder / "out"),
        "--threads",
        "1",
        "-q",
        *more,
    ]


# ----- data folders, npz files, corruption data sets


def png(width: int, height: int, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG file with any header."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(random: Random) -> tuple[str, bytes]:
    """An image file that is unusual or damaged, by what it is."""
    noise = np.frombuffer(random.randbytes(16 * 16 * 4), np.uint8).reshape(16, 16, 4)
    kind = random.choice(
        [
            "1",
            "L",
            "LA",
            "P",
            "RGBA",
            "CMYK",
            "I;16",
            "I",
            "F",
            "gif",
            "tiff",
            "1x1",
            "wide",
            "no width",
            "bomb",
            "truncated",
            "flipped",
            "empty",
            "text",
            "depth",
            "palette",
        ]
    )
    if kind in ("no width", "bomb", "depth", "palette"):
        sizes = {"no width": (0, 16), "bomb": (60_000, 60_000)}
        width, height = sizes.get(kind, (16, 16))
        depth, colour = (7, 2) if kind == "depth" else (8, 3 if kind == "palette" else 2)
        return kind, png(width, height, depth, colour, bytes(16 * 49))
    buffer = io.BytesIO()
    if kind in ("I;16", "I"):
        Image.fromarray(noise[..., 0].astype(np.uint16 if kind == "I;16" else np.int32)).save(buffer, "TIFF")
    elif kind == "F":
        Image.fromarray(noise[..., 0].astype(np.float32)).save(buffer, "TIFF")
    elif kind in ("gif", "tiff"):
        frames = [Image.fromarray(noise[..., i]) for i in range(3)]
        frames[0].save(buffer, kind.upper(), save_all=True, append_images=frames[1:])
    elif kind in ("1x1", "wide"):
        Image.new("RGB", (1, 1) if kind == "1x1" else (20_000, 1)).save(buffer, "PNG")
    else:
        image = Image.fromarray(noise)
        mode = kind if kind in ("1", "L", "LA", "P", "CMYK", "RGBA") else "RGB"
        image = image.convert("RGB").convert(mode) if mode in ("1", "L", "P", "CMYK") else image.convert(mode)
        image.save(buffer, "TIFF" if mode == "CMYK" else "PNG", **({"transparency": 0} if mode == "P" else {}))
    content = buffer.getvalue()
    changed = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"no image"}
    return kind, flipped(random, content) if kind == "flipped" else changed.get(kind, content)


def image_folder(random: Random, root: Path, classes: tuple[str, ...] = ("a", "b", "c")) -> list[Path]:
    """Six images of each class, and where they are."""
    paths = []
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(6):
            paths.append(root / name / f"{i}.png")
            Image.new("RGB", (16, 16), (number * 80, 40 * i, 9)).save(paths[-1])
    return paths


def data_case(random: Random, folder: Path, base: Base) -> Case:
    kind = random.choice(["image"] * 4 + ["special"] * 2 + ["folders", "npz", "npz", "names", "stored", "scheme"])
    if kind in ("image", "special", "folders"):
        return _folder_case(kind, random, folder, base)
    if kind == "npz":
        what, changes = random.choice(list(_npz_changes().items()))
        path = save_npz(folder / "d.npz", **changes)
        if what == "bytes":
            path.write_bytes(flipped(random, path.read_bytes()))
        return Case(f"npz: {what}", evaluate(base, folder, f"npz:{path}"), ("d.npz", "image", "onnx", "class"))
    if kind == "names":
        path = folder / "names.txt"
        content = random.choice([b"\xff\xfe", b"", b"a\nb\n", b"a\na\na\n", b"a\0\nb\nc\n", b"x" * 10**6, None])
        what = "text" if content is not None else special_file(random, path)
        if content is not None:
            path.write_bytes(content)
        arguments = evaluate(base, folder, f"npz:{base.npz}", "--class-names", str(path))
        return Case(f"class names: {what}", arguments, ("names.txt", "labels", "onnx", "class"))
    if kind == "stored":
        return _stored_case(random, folder, base)
    spec = random.choice(
        ["", ":", "npz:", "imagefolder:", "~:x", "npz:~nobody/x", "torchvision:nn", "imagefolder:\0"]
    )
    return Case("scheme", evaluate(base, folder, spec), ("data", "path"), False)


def _npz_changes() -> dict[str, dict[str, Any]]:
    images = np.zeros((6, 16, 16, 3), np.uint8)
    return {
        "bytes": {},
        "no labels": {"labels": None},
        "no images": {"images": None},
        "float": {"images": images.astype(float)},
        "flat": {"images": images[0, 0]},
        "none": {"images": images[:0]},
        "no pixels": {"images": np.zeros((60, 0, 16, 3), np.uint8)},
        "one pixel": {"images": np.zeros((60, 1, 1, 3), np.uint8)},
        "line": {"images": np.zeros((60, 1, 5000, 3), np.uint8)},
        "two channels": {"images": np.zeros((60, 16, 16, 2), np.uint8)},
        "negative": {"labels": np.arange(60) - 3},
        "huge": {"labels": np.arange(60) + 2**40},
        "unsigned": {"labels": np.arange(60).astype(np.uint64) + np.uint64(2**63)},
        "nan": {"labels": np.full(60, np.nan)},
        "one class": {"labels": np.zeros(60, int)},
        "pickled": {"labels": np.array([{}] * 60, object)},
        "two axes": {"labels": np.zeros((60, 2), int)},
        "names": {"class_names": np.array(["a"])},
        "no names": {"class_names": np.array([])},
        "number": {"class_names": np.array(3)},
        "odd names": {"class_names": np.array(list(NAMES[:3]))},
    }


def _folder_case(kind: str, random: Random, folder: Path, base: Base) -> Case:
    root = folder / "data"
    paths = image_folder(random, root)
    victim, named = random.choice(paths), ("data",)
    if kind == "image":
        what, content = encoded(random)
        if random.random() < 0.3:  # all of them
            for path in paths:
                path.write_bytes(content)
        victim.write_bytes(content)
        skip = ["--skip-bad-images"] if random.random() < 0.3 else []
        return Case(f"image: {what}", evaluate(base, folder, f"imagefolder:{root}", *skip), named)
    if kind == "special":
        victim.unlink()
        what = special_file(random, victim)
        return Case(f"image: {what}", evaluate(base, folder, f"imagefolder:{root}"), (victim.name,))
    what = random.choice(["empty class", "no class", "link", "loop", "file", "hidden", "deep", "parts"])
    if what == "empty class":
        (root / "d").mkdir()
    elif what == "no class":
        shutil.rmtree(root)
        root.mkdir()
    elif what in ("link", "loop"):
        (root / "d").symlink_to(root / "a" if what == "link" else root / "d")
    elif what == "file":
        (root / "d").write_bytes(b"")
    elif what == "hidden":
        (root / "a").rename(root / ".a")
    elif what == "deep":
        deep = root.joinpath("d", *["e"] * 60)
        deep.mkdir(parents=True)
        paths[0].rename(deep / "x.png")
    else:
        (root / "train").mkdir()
        (root / "a").rename(root / "train" / "a")
    return Case(f"folder: {what}", evaluate(base, folder, f"imagefolder:{root}"), ("data", "onnx"))


def _stored_case(random: Random, folder: Path, base: Base) -> Case:
    root = folder / "stored"
    root.mkdir()
    arrays: dict[str, np.ndarray] = {
        "labels": np.tile(np.arange(6) % 3, 5),
        "fog": np.zeros((30, 16, 16, 3), np.uint8),
    }
    what = random.choice(["length", "labels", "bytes", "special", "nothing", "classes", "float", "pixels", "order"])
    if what == "length":
        arrays["fog"] = arrays["fog"][:-1]
    elif what in ("labels", "classes", "order"):
        other = {"labels": np.arange(7), "classes": arrays["labels"] + 9, "order": np.sort(arrays["labels"])}
        arrays["labels"] = other[what]
    elif what == "float":
        arrays["fog"] = arrays["fog"].astype(np.float32)
    elif what == "pixels":
        arrays["fog"] = arrays["fog"][:, :0]
    for name, array in arrays.items() if what != "nothing" else ():
        np.save(root / f"{name}.npy", array)
    victim = root / f"{random.choice(list(arrays))}.npy"
    if what == "bytes":
        victim.write_bytes(flipped(random, victim.read_bytes()))
    elif what == "special":
        victim.unlink()
        what = special_file(random, victim)
    arguments = evaluate(base, folder, f"npz:{base.npz}", "--shifts", f"stored:{root}")
    return Case(f"stored: {what}", arguments, ("stored", "data", "npy"))


# ----- weights


def quantized(value: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will drop such tensors; files with them will stay
        return torch.quantize_per_tensor(value.contiguous(), 0.1, 0, torch.qint8)


def weights_case(random: Random, folder: Path, base: Base) -> Case:
    state, path = resnet8(3).state_dict(), folder / "w.pt"
    name = random.choice([k for k, v in state.items() if v.is_floating_point()])
    value = state[name]
    tensors: dict[str, Any] = {
        "sparse": value.to_sparse(),
        "complex": value.to(torch.complex64),
        "meta": value.to("meta"),
        "quantized": quantized(value),
        "integer": value.to(torch.int8),
        "bool": value.bool(),
        "half": value.half(),
        "float8": value.to(torch.float8_e4m3fn),
        "nan": value * torch.nan,
        "infinite": torch.full_like(value, torch.inf),
        "huge": torch.full_like(value, 1e38),
        "none": None,
        "text": "x",
        "number": 3,
        "list": [1.0],
        "scalar": torch.tensor(1.0),
        "empty": value[:0],
        "more": value[None],
        "expanded": torch.zeros(1).expand(2**40),
        "double": value.double() * 1e300,
        "zero": value * 0,
    }
    wholes: dict[str, Any] = {
        "empty dict": {},
        "list of all": [state],
        "deep": _nested(200),
        "tensor": value,
        "module": torch.nn.Linear(2, 2),
        "number alone": 3,
        "keys": {3: value},
        "names": dict.fromkeys(NAMES, value),
        "unknown": state | {"more": value},
        "missing": {k: v for k, v in state.items() if k != name},
        "within": {"state_dict": {"model": 3}},
    }
    kind = random.choice(["bytes"] * 8 + ["special"] * 4 + ["safetensors"] * 8 + [*tensors, *wholes])
    refused = kind not in ("bytes", "integer", "half", "double", "float8", "bool", "zero", "huge", "safetensors")
    if kind == "special":
        kind = special_file(random, path)
    elif kind == "safetensors":
        path = folder / "w.safetensors"
        path.write_bytes(_safetensors(random, state))
    elif kind in wholes:
        torch.save(wholes[kind], path)
    else:
        torch.save(state | ({} if kind == "bytes" else {name: tensors[kind]}), path)
        if kind == "bytes":
            path.write_bytes(flipped(random, path.read_bytes()))
    return Case(kind, quantize(base, folder, "--weights", str(path)), ("weights", name), False if refused else None)


def _nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def _safetensors(random: Random, state: dict[str, torch.Tensor]) -> bytes:
    content = save({k: v.contiguous() for k, v in state.items()})
    length = struct.unpack("<Q", content[:8])[0]
    head, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    kind = random.choice(["bytes", "length", "deep", "nan", "type", "offsets", "shape"])
    if kind == "bytes":
        return flipped(random, content)
    if kind == "length":
        return struct.pack("<Q", random.choice([0, 2**62, length + 1])) + content[8:]
    if kind == "deep":
        text = b"[" * 10**5
    else:
        entry = head[random.choice(list(head))]
        key, value = {
            "nan": ("shape", float("nan")),
            "type": ("dtype", "F7"),
            "offsets": ("data_offsets", [5, 2]),
            "shape": ("shape", [2**62, 2**62]),
        }[kind]
        entry[key] = value
        text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + body


# ----- ONNX files


def _loop(endless: bool) -> Any:
    number, truth = value_info("i", TensorProto.INT64, []), value_info("go", TensorProto.BOOL, [])
    before, after = (value_info(name, TensorProto.FLOAT, None) for name in ("in", "out"))
    same = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["in"], ["out"])]
    outputs = [value_info("on", TensorProto.BOOL, []), after]
    inner = helper.make_graph(same, "body", [number, truth, before], outputs)
    count = helper.make_node("Constant", [], ["count"], value_int=10**15)
    always = helper.make_node("Constant", [], ["always"], value=numpy_helper.from_array(np.array(True)))
    loop = helper.make_node("Loop", ["" if endless else "count", "always", "images"], ["pixels"], body=inner)
    return [count, always, loop]


def _within_if(nodes: list[Any]) -> list[Any]:
    last, out = copy.deepcopy(nodes[-1]), [value_info("inner", TensorProto.FLOAT, None)]
    last.output[0] = "inner"
    branch = helper.make_graph([*nodes[:-1], last], "branch", [], out)
    other = helper.make_graph([helper.make_node("Identity", ["images"], ["inner"])], "other", [], out)
    always = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    return [always, helper.make_node("If", ["yes"], ["pixels"], then_branch=branch, else_branch=other)]


def _function(nodes: list[Any]) -> dict[str, Any]:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    made = helper.make_function("own", "F", ["images"], ["pixels"], nodes, opsets)
    return {"nodes": [helper.make_node("F", ["images"], ["pixels"], domain="own")], "functions": [made]}


def onnx_case(random: Random, folder: Path, base: Base) -> Case:
    node = helper.make_node
    same = [node("Identity", ["images"], ["pixels"])]
    deep = same
    for _ in range(25):
        deep = _within_if(deep)
    big = numpy_helper.from_array(np.array([10**9, 10**9]), "v")
    kinds: dict[str, Any] = {
        "endless loop": {"nodes": _loop(True)},
        "long loop": {"nodes": _loop(False)},
        "loop in an if": {"nodes": _within_if(_loop(True))},
        "loop in a function": _function(_loop(True)),
        "if": {"nodes": _within_if(same)},
        "deep": {"nodes": deep},
        "recursion": _function([node("F", ["images"], ["pixels"], domain="own")]),
        "nan": {"weights": np.full((3, 3), np.nan, np.float32)},
        "wide": {"weights": np.ones((3, 2), np.float32)},
        "one class": {"weights": np.ones((3, 1), np.float32)},
        "unfitting": {"weights": np.ones((4, 3), np.float32)},
        "huge image": {"shape": ("n", 3, 10**6, 10**6)},
        "huge batch": {"shape": (10**9, 3, 16, 16)},
        "no batch": {"shape": (0, 3, 16, 16)},
        "no size": {"shape": ("n", 3, 0, 0)},
        "tiny": {"shape": ("n", 3, 1, 1)},
        "channels": {"shape": ("n", 7, 16, 16)},
        "negative": {"shape": (-1, 3, 16, 16)},
        "flat": {"shape": (3, 16)},
        "text": {"dtype": TensorProto.STRING},
        "bool": {"dtype": TensorProto.BOOL},
        "inputs": {"inputs": [value_info("more", TensorProto.FLOAT, [1])]},
        "unknown": {"nodes": [node("Nothing", ["images"], ["pixels"])]},
        "custom": {"nodes": [node("Own", ["images"], ["pixels"], domain="own.ops")]},
        "cycle": {"nodes": [node("Identity", ["mean"], ["pixels"])]},
        "open": {"shape": ("n", 3, "h", "w")},
        "expand": {"nodes": [node("Constant", [], ["s"], value=big), node("Expand", ["images", "s"], ["pixels"])]},
        "sequence": {"nodes": [node("SequenceConstruct", ["images"], ["pixels"])]},
        "bytes": {},
        "cut": {},
        "named": {"name": random.choice(NAMES[:10])},
        "external": {},
        "outside": {},
        "special": {},
        "ort": {},
        "empty": {},
    }
    kind = random.choice([*kinds, *["bytes"] * 8, "special", "external"])
    path = folder / ("m.ort" if kind == "ort" else "m.onnx")
    proto = classifier(**kinds[kind])
    if kind in ("external", "outside"):
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        places = ["w.bin"] if kind == "external" else ["../../../etc/passwd", "/etc/passwd", "\0", "a" * 5000]
        for key, value in (("location", random.choice(places)), ("offset", "0"), ("length", "36")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        if kind == "external" and random.random() < 0.7:
            kind = f"external {special_file(random, folder / 'w.bin')}"
    if kind == "special":
        kind = special_file(random, path)
    else:
        content = b"" if kind == "empty" else proto.SerializeToString()
        path.write_bytes(flipped(random, content) if kind in ("bytes", "ort") else content)
    arguments = ["audit", str(path)]
    if random.random() < 0.5:
        arguments = evaluate(base, folder, f"npz:{base.npz}", graph=path)
    elif random.random() < 0.3:
        arguments += ["--json"]
    return Case(kind, arguments, (path.name, "image_size", "onnx"), False if "loop" in kind else None)


# ----- folders of runs


def _mutated_json(random: Random, text: str) -> str:
    """A JSON file with one value changed, somewhere."""
    kind = random.choice(["value"] * 6 + ["deep", "constant", "bytes", "key", "list"])
    if kind == "bytes":
        return flipped(random, text.encode()).decode(errors="replace")
    if kind == "list":
        return f"[{text}]"
    whole = json.loads(text)
    places: list[tuple[Any, Any]] = []
    stack = [whole]
    while stack:
        found = stack.pop()
        keys = list(found) if isinstance(found, dict) else range(len(found))
        places += [(found, key) for key in keys]
        stack += [found[key] for key in keys if isinstance(found[key], dict | list)]
    parent, key = random.choice(places)
    if kind == "key":
        del parent[key]
        return json.dumps(whole)
    parent[key] = "HERE" if kind in ("deep", "constant") else random.choice(JUNK)
    other = {"deep": "[" * 200_000 + "]" * 200_000, "constant": random.choice(["NaN", "-Infinity", "1" * 4000])}
    return json.dumps(whole).replace('"HERE"', other.get(kind, "0"))


def run_case(random: Random, folder: Path, base: Base) -> Case:
    run = folder / "run"
    shutil.copytree(base.run, run)
    kind = random.choice(["json"] * 5 + ["bytes"] * 2 + ["special", "swap", "missing", "link"])
    files = sorted(p for p in run.rglob("*") if p.is_file())
    victim = random.choice([p for p in files if p.suffix == ".json" or kind != "json"])
    if kind == "json":
        victim.write_text(_mutated_json(random, victim.read_text()))
    elif kind == "bytes":
        victim.write_bytes(flipped(random, victim.read_bytes()))
    elif kind == "special":
        victim.unlink()
        kind = special_file(random, victim)
    elif kind == "swap":
        other = random.choice([p for p in files if p.suffix == victim.suffix])
        victim.write_bytes(other.read_bytes())
    elif kind == "missing":
        victim.unlink()
    else:  # a folder of the run, or a file, lies elsewhere
        victim = random.choice([victim, *(p for p in run.iterdir() if p.is_dir())])
        victim.rename(folder / "outside")
        victim.symlink_to(folder / "outside")
    command = random.choice(
        [
            ["report"],
            ["report"],
            ["report"],
            ["evaluate"],
            ["sensitivity"],
            ["export"],
            ["evaluate", "--budget", "1h"],
            ["evaluate", "--shifts", "inversion", "--severities", "5"],
        ]
    )
    common = [] if command == ["report"] else ["--threads", "1", "-q"]
    arguments = [command[0], str(run), *command[1:], *common]
    where = f"{victim.relative_to(run)}, {kind}"
    return Case(f"{command[0]}: {where}", arguments, ("run", victim.name, "config", "onnx", "pictures", "attacks"))


# ----- options

NUMBERS = (
    "-1",
    "-0.5",
    "0",
    "1" + "0" * 12,
    "1" + "0" * 30,
    "nan",
    "inf",
    "-inf",
    "1e999",
    "x",
    "",
    "1/0",
    "9" * 5000,
)
TEXTS = (
    "",
    " ",
    ",",
    "~nobody/x",
    "x" * 5000,
    "\0",
    "auto:",
    "auto:-1",
    "auto:999999999999",
    "=",
    "a=b=c",
    "1/0",
    *NAMES,
)
# Of a command that trains, what other options let pass ends at a --train-on that is none.
NOT_TRIED = {"run": {"out", "shifts", "train_on", "scenario"}, "compensate": {"shifts", "train_on", "scenario"}}


def option_case(random: Random, folder: Path, base: Base) -> Case:
    command = random.choice(["run", "quantize", "evaluate", "evaluate", "compensate", "audit", "sensitivity", "demo"])
    options = [
        p
        for p in main.commands[command].params
        if p.opts[0].startswith("--")
        and p.name not in NOT_TRIED.get(command, {"out"})
        and not getattr(p, "is_flag", False)
    ]
    option = random.choice(options)
    numeric = option.type.name in ("integer", "float", "fraction", "duration")
    value = random.choice(NUMBERS if numeric or random.random() < 0.3 else TEXTS)
    if command in ("compensate", "sensitivity"):
        shutil.copytree(base.run, folder / "run")
    run = [command, str(folder / "run"), "--threads", "1", "-q"]
    given = {
        "run": [
            "run",
            *quantize(base, folder, "--steps", "5", "--batch-size", "16", "--attacks", "none")[1:],
            "--shifts",
            "contrast",
            "--train-on",
            "smog",
        ],
        "quantize": quantize(base, folder),
        "evaluate": evaluate(base, folder, f"npz:{base.npz}"),
        "audit": ["audit", str(base.graph)],
        "compensate": [*run, "--train-on", "smog"],
        "sensitivity": run,
        "demo": ["demo", "--out", str(folder / "out"), "-q"],
    }[command]
    if command == "demo" and value == "0":  # nothing that it accepts, it would train
        value = "-1"
    arguments = [*given, f"{option.opts[0]}={value}"]
    words = (
        option.name or "",
        option.opts[0],
        (option.name or "").rstrip("s"),
        "train-on",
        printable(value)[:40] or "''",
    )
    nonsense = numeric and value in ("-1", "nan", "x", "", "1/0", "9" * 5000, "1e999", "inf", "-inf", "1" + "0" * 30)
    return Case(f"{command} {option.opts[0]}={value[:40]!r}", arguments, words, False if nonsense else None)


# ----- names


def name_case(random: Random, folder: Path, base: Base) -> Case:
    name, place = (
        random.choice(NAMES),
        random.choice(
            [
                "class",
                "class",
                "class names",
                "folder",
                "model",
                "image",
                "node",
                "stored",
                "corruption",
                "layer",
                "config",
                "shift",
                "weights",
            ]
        ),
    )
    file = name.replace("/", "").strip(".") or "x"
    words: tuple[str, ...] = (printable(" ".join(name.split()))[:20], "data", "onnx", "class", "weights")
    if place == "class":
        root = folder / "data"
        image_folder(random, root, (file, "b", "c"))
        arguments = evaluate(base, folder, f"imagefolder:{root}")
    elif place == "class names":
        (folder / "names.txt").write_text(f"{name}\nb\nc\n", encoding="utf-8", errors="surrogateescape")
        arguments = evaluate(base, folder, f"npz:{base.npz}", "--class-names", str(folder / "names.txt"))
    elif place == "folder":
        image_folder(random, folder / file)
        arguments = evaluate(base, folder, f"imagefolder:{folder / file}")
    elif place == "model":
        path = Path(shutil.copy(base.graph, folder / f"{file[:200]}.onnx"))
        arguments = evaluate(base, folder, f"npz:{base.npz}", graph=path)
    elif place == "image":
        image_folder(random, folder / "data")
        (folder / "data" / "a" / f"{file}.png").write_bytes(b"no image")
        skip = ["--skip-bad-images"] if random.random() < 0.6 else []
        arguments = evaluate(base, folder, f"imagefolder:{folder / 'data'}", *skip)
    elif place == "node":
        proto = classifier(name=name.encode("utf-8", "backslashreplace").decode())
        onnx.save(proto, folder / "m.onnx")
        arguments = ["audit", str(folder / "m.onnx")]
    elif place in ("stored", "corruption"):
        root = folder / (file if place == "stored" else "stored")
        root.mkdir()
        np.save(root / "labels.npy", np.tile(np.arange(6) % 3, 5))
        np.save(root / f"{file if place == 'corruption' else 'fog'}.npy", np.zeros((30, 16, 16, 3), np.uint8))
        arguments = evaluate(base, folder, f"npz:{base.npz}", "--shifts", f"stored:{root}")
        words += ("shift", "stored")
    elif place == "shift":
        path = folder / f"{file[:200]}.py"
        path.write_text("def darker(images, strength, generators):\n    return images * (1 - strength / 2)\n")
        arguments = evaluate(base, folder, f"npz:{base.npz}", "--shifts", f"{path}:darker")
        words += ("shift",)
    elif place == "weights":
        (folder / file).write_bytes(b"no weights")
        arguments = quantize(base, folder, "--weights", str(folder / file))
    else:
        run = folder / "run"
        shutil.copytree(base.run, run)
        if place == "layer":
            stage = read_json(run / "stages" / "quantize.json")
            stage["quantization"]["layer_noise"][0]["name"] = name
            write_sealed(run / "stages" / "quantize.json", stage)
        else:
            config = read_json(run / "config.json") | {"data": name, "weights": name}
            (run / "config.json").write_text(json.dumps(config))
        arguments = ["report", str(run)]
    return Case(f"{place}: {name[:30]!r}", arguments, words)


Maker = Callable[[Random, Path, Base], Case]
SURFACES: dict[str, Maker] = {
    "data": data_case,
    "weights": weights_case,
    "onnx": onnx_case,
    "run folder": run_case,
    "options": option_case,
    "names": name_case,
}
