"""Files of tensors: what torch and safetensors write is read as they read it, and everything else is refused.

A .bin is never unpickled; no size is believed, and no memory is taken before it is known to be plausible.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import nn

from robustmerge.formats.adapter import LoraPair, open_adapter
from robustmerge.formats.delta import open_delta
from robustmerge.formats.full_model import export_model
from robustmerge.formats.tensors import TensorFile
from robustmerge.merging import merge_folders
from robustmerge.method import read_method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET, Tiny, random_experts, read_back, rewrite_tensors, save_expert, write_expert

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
F8 = X.to(torch.float8_e4m3fn)
OLD = {"_use_new_zipfile_serialization": False}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def to_bytes(content: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def open_bytes(folder: Path, content: bytes, suffix: str = ".bin") -> TensorFile:
    path = folder / f"tensors{suffix}"
    path.write_bytes(content)
    return TensorFile(path)


# --- what is read -------------------------------------------------------------------------------------------------


def draw_tensors() -> dict[str, torch.Tensor]:
    """Tensors of every dtype and layout that a `state_dict` has."""
    dtypes = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    tensors = {f"in {dtype}": (3 * X).to(getattr(torch, dtype)) for dtype in dtypes}
    marked = nn.Parameter(X.clone())
    marked._is_hf_initialized = True  # as transformers leaves it
    attributed = X.clone()
    attributed.note = "text"
    return tensors | {
        "tied": tensors["in float32"], "part": tensors["in float32"][1:3, 2:], "transposed": X.T, "third": X[0, 1::3],
        "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "parameter": nn.Parameter(X.clone()),
        "marked": marked, "attributed": attributed, "trained": X.clone().requires_grad_(),
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, OLD, {"pickle_protocol": 3}, {"pickle_protocol": 4}], ids=str)
@pytest.mark.parametrize("kind", [dict, OrderedDict, lambda tensors: as_module(tensors).state_dict()])
def test_a_bin_is_read_as_torch_reads_it_without_its_gradients(tmp_path: Path, options: dict, kind: Callable) -> None:
    tensors = kind(draw_tensors())
    file = open_bytes(tmp_path, to_bytes(tensors, **options))
    assert file.names == sorted(tensors)
    for name, expected in tensors.items():
        read = file.get(name)
        assert torch.equal(read, expected) and read.stride() == expected.stride() and not read.requires_grad, name
        assert (file.dtype(name), file.shape(name)) == (read.dtype, read.shape) == (expected.dtype, expected.shape)


def as_module(tensors: dict[str, torch.Tensor]) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return module


@pytest.mark.parametrize(
    ("dtype", "is_bin"), [("float8_e4m3fn", False), ("float8_e5m2", True), ("float8_e5m2fnuz", True)]
)
def test_float8_is_read_as_float32_and_merged_by_every_rule(tmp_path: Path, dtype: str, is_bin: bool) -> None:
    for seed, name in enumerate("ab"):
        save_expert(tmp_path / f"{name}32", seed, modules_to_save=["projector"])
        save_expert(tmp_path / name, seed, modules_to_save=["projector"])
        narrow = {n: x.to(getattr(torch, dtype)) for n, x in load_file(tmp_path / name / WEIGHTS).items()}
        rewrite_tensors(tmp_path / name, lambda _, narrow=narrow: narrow, is_bin)
        rewrite_tensors(tmp_path / f"{name}32", lambda _, narrow=narrow: {n: x.float() for n, x in narrow.items()})
    method = read_method("ties", out__dtype="experts")
    for suffix in ("", "32"):
        merge_folders({name: tmp_path / f"{name}{suffix}" for name in "ab"}, method, tmp_path / f"m{suffix}", **QUIET)
    narrow, wide = read_back(tmp_path / "m"), read_back(tmp_path / "m32")
    assert narrow.keys() == wide.keys() and all(torch.equal(narrow[name], wide[name]) for name in wide)


WEIGHTS = "adapter_model.safetensors"


def test_a_base_in_float8_is_refused_as_its_scales_are_not_read(tmp_path: Path) -> None:
    save_expert(tmp_path / "a")
    (tmp_path / "base").mkdir()
    weights = {name: x.to(torch.float8_e4m3fn) for name, x in Tiny().state_dict().items()}
    save_file(weights, tmp_path / "base" / "model.safetensors")
    with pytest.raises(UserError, match="'layers.0.q.bias' in float8, whose scale is not read; take .*format=adapter"):
        export_model(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_in_any_script_are_written_again(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_expert(tmp_path / name, random_experts(name, ("été.層.q", "𝒜" * 60 + ".q"), seed=seed)[name])
    merge_folders([tmp_path / "a", tmp_path / "b"], "average", tmp_path / "out", **QUIET)
    assert open_adapter(tmp_path / "out").modules == open_adapter(tmp_path / "a").modules


# --- what is refused ----------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


CONTENTS: dict[str, tuple[object, str]] = {
    "sparse": (X.to_sparse(), "is a sparse tensor"),
    "sparse rows": (X.to_sparse_csr(), "is a sparse tensor"),
    "meta": (torch.empty(3, device="meta"), "without numbers"),
    "quantised": (torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "is a quantised tensor|is qint8"),
    "nested": (torch.nested.nested_tensor([X, X[:2]]), "is a nested tensor"),
    "complex": (X.to(torch.complex64), "is complex64; allowed: float64,"),
    "conjugate": (X.to(torch.complex64).conj(), "conjugate view|is complex64"),
    "negative": (torch._neg_view(X), "negative or conjugate view"),
    "unsigned": (torch.tensor([1], dtype=torch.uint16), "is uint16; allowed: float64,"),
    "a scale": (torch.ones(4, dtype=torch.uint8).view(torch.float8_e8m0fnu), "is float8_e8m0fnu; allowed"),
    "expanded": (torch.ones(1).expand(2**31), r"has shape \[2147483648\], but only 1 numbers"),
    "code": (Evil(), r"what could run code is not unpickled \('x' is made by posix.system\)"),
    "numpy": (X.numpy(), "made by numpy"),
    "a number": (5, "'x' is of type int"),
    "nothing": (None, "'x' is of type NoneType"),
    "a mapping": ({"y": X}, "'x' is of type dict"),
    "a model": (nn.Linear(2, 2), "made by torch.nn.modules.linear.Linear|a model that was saved whole"),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("options", [{}, OLD], ids=["zip", "old"])
def test_what_is_no_dense_tensor_of_a_known_dtype_is_refused_by_its_name(
    tmp_path: Path, kind: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, reason = CONTENTS[kind]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^cannot read .*tensors.bin: .*{reason}"):
        open_bytes(tmp_path, to_bytes({"x": content, "y": X}, **options))
    assert not (tmp_path / "ran").exists()


def zip_of(content: bytes, storage: bytes = b"", method: int = zipfile.ZIP_STORED, name: str = "a/data/0") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("a/data.pkl", content)
        archive.writestr(name, storage)
    return stream.getvalue()


def zip_again(content: bytes, method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(stream, "w", method) as after:
        for name in before.namelist():
            after.writestr(name, before.read(name))
    return stream.getvalue()


def with_byte(content: bytes, at: int, value: int) -> bytes:
    """The file with one byte of the last entry of its zip's directory changed."""
    place = content.rindex(b"PK\1\2") + at
    return content[:place] + bytes([value]) + content[place + 1 :]


PLAIN = to_bytes({"x": X})
FILES: dict[str, tuple[bytes, str]] = {
    "deflated": (zip_again(PLAIN, zipfile.ZIP_DEFLATED), "'archive/data.pkl' is compressed"),
    "bzip2": (zip_again(PLAIN, zipfile.ZIP_BZIP2), "is compressed"),
    "an unknown method": (with_byte(PLAIN, 10, 99), "is compressed"),
    "encrypted": (with_byte(PLAIN, 8, 1), "is encrypted"),
    "a bomb": (zip_of(b"}.", bytes(10**8), zipfile.ZIP_DEFLATED), "is compressed"),
    "another zip": (zip_of(b"}.").replace(b"a/data.pkl", b"a/data.pk_"), "a zip file, but not one of torch.save"),
    "two of a name": (zip_of(b"}.", name="a/data.pkl"), "two parts called 'a/data.pkl'"),
    "cut": (PLAIN[:-30], "is damaged"),
    "no zip": (b"PK\3\4", "is damaged"),
    "empty": (b"", "is damaged"),
    "a pickle": (pickle.dumps(Evil()), "is damaged"),
    "other bytes": (to_bytes({"x": X}).replace(b"little", b"bigger"), "another byte order"),
    "a large storage": (to_bytes({"x": X}, **OLD).replace(struct.pack("<q", 24), struct.pack("<q", 2**40)), "damaged"),
    "a large claim": (zip_of(b"\x8d" + struct.pack("<Q", 2**62) + b"."), "is damaged"),
    "millions of steps": (zip_of(b"N" * 5 * 10**6 + b"."), "more than 500000 steps"),
    "a name of pairs of pairs": (zip_of(b"}()" + b"2\x86" * 60 + b"Nu."), "a name is no text"),
    "tuples in tuples": (zip_of(b")" + b"\x85" * 10**5 + b"."), "of type tuple"),
    "long arguments again and again": (
        zip_of(b"ctorch._utils\n_rebuild_tensor_v3\nq\0(" + b"N" * 10**4 + b"tq\1" + b"h\0h\1R0" * 10**4 + b"00]."),
        "of type list",
    ),
    "itself": (zip_of(b"}q\0X\1\0\0\0ah\0s."), "'a' is of type dict"),
    "one storage often": (to_bytes(dict.fromkeys(map(str, range(40)), torch.zeros(10**4))), "share their num"),
    "a long name": (to_bytes({"x" * 501: X}), "'xxx.* is no name of a tensor"),
    "an escape sequence": (to_bytes({"a\x1b[2J": X}), r"'a\\x1b\[2J' is no name of a tensor"),
}


@pytest.fixture
def bounded() -> Iterator[None]:
    """The test takes less than 8 s of one processor, and at most 500 MB more than before."""
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - started < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.usefixtures("bounded")
def test_a_bin_of_another_structure_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    content, reason = FILES[kind]
    with pytest.raises(UserError, match=f"^cannot read .*tensors.bin: .*{reason}"):
        open_bytes(tmp_path, content)


def header(text: object, claimed: int | None = None, data: bytes = b"") -> bytes:
    """A .safetensors file. text: its header, as bytes or to be written as JSON. claimed: the length it gives."""
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(dtype: str = "F32", shape: tuple[int, ...] = (1,), end: int = 4) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [0, end]}


HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "header too small"),
    "a length of 2**63": (header(b"{}", 2**63), "header too large"),
    "a length beyond the file": (header(b"{}", 10**6), "invalid header"),
    "a list": (header([1, 2]), "invalid JSON in header"),
    "null": (header(b"null"), "invalid JSON in header"),
    "deep": (header(b'{"a":' * 10**5), "invalid JSON in header"),
    "an unknown dtype": (header({"a": entry("F33")}, data=bytes(4)), "invalid JSON in header"),
    "a complex dtype": (header({"a": entry("C64", end=8)}, data=bytes(8)), "tensor 'a' is C64; allowed: float64"),
    "an overflow": (header({"a": entry(shape=(2**40, 2**40), end=0)}), "overflow"),
    "an empty tensor of great size": (header({"a": entry(shape=(0, 2**60), end=0)}), "the implausible shape"),
    "a long name": (header({"x" * 501: entry()}, data=bytes(4)), "is no name of a tensor"),
    "a name of two lines": (header({"a\nb": entry()}, data=bytes(4)), r"'a\\nb' is no name of a tensor"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, kind: str) -> None:
    content, reason = HEADERS[kind]
    with pytest.raises(UserError, match=f"^cannot read .*tensors.safetensors: .*{reason}"):
        open_bytes(tmp_path, content, ".safetensors")


@pytest.mark.usefixtures("bounded")
def test_tens_of_thousands_of_tensors_are_opened_in_seconds(tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "a", random_experts("a", ("q",), rank=1)["a"])
    names = [f"base_model.model.{n}.q.lora_{part}.weight" for n in range(10_000) for part in "AB"]
    places = {name: {**entry(shape=(1, 1)), "data_offsets": [4 * n, 4 * n + 4]} for n, name in enumerate(names)}
    (folder / WEIGHTS).write_bytes(header(places, data=struct.pack("<f", 1) * len(names)))
    assert len(open_adapter(folder).modules) == 10_000


def test_a_file_that_is_no_file_is_never_opened(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".bin"):
        os.mkfifo(tmp_path / f"pipe{suffix}")
        (tmp_path / f"pointer{suffix}").write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(UserError, match="is a named pipe"):
            TensorFile(tmp_path / f"pipe{suffix}")
        with pytest.raises(UserError, match="git lfs pull"):
            TensorFile(tmp_path / f"pointer{suffix}")


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("add.q.weight", torch.ones(3), r"kernels, of floats, got \[3\]"),
        ("add.q.weight", torch.ones(2, 2, dtype=torch.int32), r"kernels, of floats, got \[2, 2\] of torch.int32"),
        ("add.q.weight", torch.ones(0, 2), "kernels, of floats"),
        ("add.q.bias", torch.ones(2, 2), "the update of a .weight"),
        ("q.weight", torch.ones(2, 2), "a name begins with 'add.' or 'set.'"),
    ],
)
def test_a_delta_holds_updates_of_weights(tmp_path: Path, name: str, tensor: torch.Tensor, reason: str) -> None:
    save_file({name: tensor}, tmp_path / "delta.safetensors")
    (tmp_path / "delta_config.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match=reason):
        open_delta(tmp_path)


def test_a_dense_update_that_fits_no_memory_is_refused_before_it_is_made(tmp_path: Path) -> None:
    wide = {"q": LoraPair(torch.ones(1, 10**6), torch.ones(10**6, 1))}
    experts = {name: write_expert(tmp_path / name, wide) for name in "ab"}
    with pytest.raises(UserError, match="'q' is 1000000 x 1000000: its dense update takes 4000 GB"):
        merge_folders(experts, read_method("average", out__format="delta"), tmp_path / "out", **QUIET)


# --- a law for any bytes ------------------------------------------------------------------------------------------


def change_pickle(content: bytes, change: Callable[[bytearray], None]) -> bytes:
    """The .bin with other bytes in its pickle, in a whole zip."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(stream, "w") as after:
        for name in before.namelist():
            part = bytearray(before.read(name))
            if name.endswith("data.pkl"):
                change(part)
            after.writestr(name, bytes(part))
    return stream.getvalue()


@pytest.mark.parametrize("options", [{}, OLD, None], ids=["zip", "old", "safetensors"])
def test_any_bytes_are_read_as_torch_and_safetensors_read_them_or_refused(tmp_path: Path, options: dict | None) -> None:
    tensors = {"x": X, "part": X[1:], "half": X.half(), "whole": torch.arange(3)}
    content = save({n: x.clone() for n, x in tensors.items()}) if options is None else to_bytes(tensors, **options)
    draw, suffix, read = random.Random(0), ".safetensors" if options is None else ".bin", 0

    def change(text: bytearray) -> None:
        for _ in range(draw.choice((1, 1, 2, 5))):
            at = draw.randrange(min(len(text), 700))
            text[at : at + draw.choice((0, 1, 1, 1, 2))] = draw.choice((b"", draw.randbytes(1), b"(", b"R", b"0", b"9"))

    for _ in range(150):
        if options == {} and draw.random() < 0.7:
            changed = change_pickle(content, change)
        else:
            change(text := bytearray(content))
            changed = bytes(text)
        try:
            file = open_bytes(tmp_path, changed, suffix)
        except UserError as error:
            assert str(error).startswith("cannot read ")  # noqa: PT017
            continue
        try:
            expected = load_file(file.path) if options is None else torch.load(file.path, weights_only=True)
        except (pickle.UnpicklingError, SafetensorError, RuntimeError):
            continue
        assert set(file.names) == set(expected)
        for name in file.names:
            ours, theirs = file.get(name), expected[name]
            assert ours.shape == theirs.shape
            assert ours.contiguous().view(torch.uint8).equal(theirs.contiguous().view(torch.uint8))
        read += 1
    assert 5 < read < 145
