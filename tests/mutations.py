"""Seeded mutations of good files: of JSON by value and by byte, of tensor files by tensor, by container and by byte."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# Values that somebody's file may hold where another value belongs.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 4.0, 4.7, 1e25, 1e308, 10**400, float("nan"), float("inf"), "", "4", "none",
    "x" * 5000,
    "\x1b[2J\x1b[1;1Hall good", "\ud800", "a\nb", "../../outside", "/etc/passwd", "é|`<b>\"'", [], {}, [None], [""],
    ["q", 5], ["q"],
    [["q"]], {"q": 5}, {"q": None}, {"(q+)+!": 4}, "(([a-z0-9_.])+)+!", "(?i)q", "q{99999999999}", "q|v",
    {"": ""}, [float("nan")], [1e999, 5], 2**63,
)  # fmt: skip
TEXTS: tuple[Callable[[str, Random], bytes], ...] = (
    lambda text, draw: text[: draw.randrange(len(text))].encode(),
    lambda text, draw: text.encode("utf-16"),
    lambda text, draw: b"\xef\xbb\xbf" + text.encode(),
    lambda text, draw: text.encode()[: len(text) // 2] + b"\xff\xfe" + text.encode()[len(text) // 2 :],
    lambda text, draw: b"[" * 100_000,
    lambda text, draw: b'{"a":' * 100_000,
    lambda text, draw: b"1" * 5000,
    lambda text, draw: b"",
    lambda text, draw: b"null",
    lambda text, draw: f"[{text}]".encode(),
    lambda text, draw: text.replace(":", ": " + "[" * 200 + "]" * 200 + ', "x":', 1).encode(),
    lambda text, draw: text.replace("1", "1" * 5000, 1).encode(),
    lambda text, draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
)


def mutate_json(path: Path, draw: Random, keys: tuple[str, ...] = ()) -> str:
    """Change a JSON file: one value (of `keys`, where they are given), one key, or its bytes. Returns what was done."""
    text = path.read_text()
    if draw.random() < 0.2:
        number = draw.randrange(len(TEXTS))
        path.write_bytes(TEXTS[number](text, draw))
        return f"{path.name}: text {number}"
    content = json.loads(text)
    places = [place for place in list_places(content) if not keys or place[0][-1] in keys or draw.random() < 0.05]
    place, holder = draw.choice(places or list_places(content))
    if draw.random() < 0.15:
        del holder[place[-1]]
        done = f"without {place}"
    else:
        number = draw.randrange(len(VALUES))
        holder[place[-1]] = VALUES[number]
        done = f"{place} = {VALUES[number]!r:.60}"
    path.write_text(json.dumps(content))
    return f"{path.name}: {done}"


def list_places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Every key and index in nested JSON: its path, and the list or mapping that holds it."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    return [place for key in keys for place in [((*path, key), content), *list_places(content[key], (*path, key))]]


WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
RENAMES: tuple[Callable[[str], str], ...] = (
    *(lambda name, word=word: name.replace("layers.", f"{word}layers.") for word in WRAPPERS),  # type: ignore[misc]
    lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    lambda name: "module." + name,
    lambda name: name.replace("base_model.model.", "base_model.model.base_model.model."),
    lambda name: name.removeprefix("base_model.model."),
    lambda name: name.replace("_A.weight", "_A.default_0.weight").replace("_B.weight", "_B.default_0.weight"),
    lambda name: name.replace("_A.weight", "_A.vqa.weight"),
    lambda name: name.replace(".q.", ".k."),
    lambda name: name.replace("lora_", "lora_embedding_"),
    lambda name: name + "\x1b[2J",
    lambda name: name.replace("q", "q" * 3000),
    lambda name: name.replace("layers.", "layers.\n"),
)
CHANGES: tuple[Callable[[Tensor], Tensor | None], ...] = (
    lambda x: None,
    lambda x: torch.empty(0),
    lambda x: torch.empty(0, *x.shape[1:]),
    lambda x: x[0],
    lambda x: x.T.contiguous(),
    lambda x: x[:1].contiguous(),
    lambda x: x.unsqueeze(0),
    lambda x: torch.full_like(x, float("nan")),
    lambda x: torch.full_like(x, float("inf")),
    lambda x: x * 1e25,
    lambda x: x.half(),
    lambda x: x.bfloat16(),
    lambda x: x.double(),
    lambda x: x.to(torch.float8_e4m3fn),
    lambda x: x.to(torch.float8_e5m2),
    lambda x: x.to(torch.complex64),
    lambda x: x.to(torch.int32),
    lambda x: x > 0,
    lambda x: torch.zeros_like(x),
)
CHANGES_OF_BIN: tuple[Callable[[Tensor], Any], ...] = (
    lambda x: nn.Parameter(x),
    lambda x: x.to_sparse(),
    lambda x: x.to_sparse_csr() if x.dim() == 2 else x.to_sparse(),
    lambda x: x.to("meta"),
    lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    lambda x: torch.ones(1).expand(x.shape),
    lambda x: torch.ones(1).expand(2**14, 2**14),
    lambda x: x.T.contiguous().T,
    lambda x: x.numpy(),
    lambda x: x.tolist(),
    lambda x: {"nested": x},
    lambda x: 5,
)


def mutate_tensors(path: Path, draw: Random) -> str:
    """Change a .safetensors file, which may become a .bin. Returns what was done."""
    tensors: dict[str, Any] = dict(load_file(path))
    kind = draw.choice(("bytes", "names", "values", "values", "container", "container"))
    if kind == "bytes":
        return _mutate_bytes(path, draw)
    if kind == "names":
        number = draw.randrange(len(RENAMES))
        chosen = set(draw.sample(sorted(tensors), 1) if draw.random() < 0.2 else tensors)
        save_file({RENAMES[number](n) if n in chosen else n: x for n, x in tensors.items()}, path, {"format": "pt"})
        return f"rename {number} of {len(chosen)}"
    chosen = set(tensors) if draw.random() < 0.3 else {draw.choice(sorted(tensors))}
    changes = CHANGES if kind == "values" else (*CHANGES[:6], *CHANGES_OF_BIN, *CHANGES_OF_BIN)
    number = draw.randrange(len(changes))
    changed = {name: changes[number](x) if name in chosen else x for name, x in tensors.items()}
    changed = {name: x for name, x in changed.items() if x is not None}
    if kind == "values":
        save_file({name: x.contiguous() for name, x in changed.items()}, path, {"format": "pt"})
        return f"value {number} of {len(chosen)}"
    path.unlink()
    return f"bin, value {number} of {len(chosen)}, {_save_bin(changed, path.with_name('adapter_model.bin'), draw)}"


def _mutate_bytes(path: Path, draw: Random) -> str:
    data = bytearray(path.read_bytes())
    kind = draw.choice(("flip", "flip header", "cut", "more", "length"))
    if kind == "cut":
        del data[draw.randrange(len(data)) :]
    elif kind == "more":
        data += draw.randbytes(20)
    elif kind == "length":
        data[:8] = draw.choice((0, 1, len(data), 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")
    else:
        end = 8 + int.from_bytes(data[:8], "little") if kind == "flip header" else len(data)
        data[draw.randrange(end)] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return kind


def _save_bin(tensors: dict[str, Any], path: Path, draw: Random) -> str:
    """Write a .bin in one of the containers that there are, and some that there should not be."""
    kind = draw.choice(("zip", "zip", "legacy", "deflated", "encrypted", "no zip"))
    with io.BytesIO() as file:
        torch.save(tensors, file, _use_new_zipfile_serialization=kind != "legacy")
        data = file.getvalue()
    if kind == "deflated":
        source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in source.infolist():
                archive.writestr(entry.filename, source.read(entry))
        data = target.getvalue()
    elif kind == "encrypted":
        data = data.replace(b"PK\x01\x02\x00\x00\x00\x00", b"PK\x01\x02\x00\x00\x00\x00\x01\x00"[:8])
        start = data.index(b"PK\x01\x02")
        data = data[: start + 8] + b"\x01" + data[start + 9 :]
    elif kind == "no zip":
        data = data[draw.randrange(4, 40) :]
    path.write_bytes(data)
    return kind
