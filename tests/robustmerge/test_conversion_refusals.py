"""What conversions refuse, in which words: each fault would be a wrong model in silence. Also the way back's limits.

Needs no network.
"""

from __future__ import annotations

import errno
import io
import json
import os
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.adapter_config import CONFIG, WEIGHTS
from robustmerge.formats.llava.configs import Llava15Size
from robustmerge.formats.llava.from_peft import convert_to_original
from robustmerge.formats.llava.names import is_original
from robustmerge.formats.llava.old_peft import has_old_names
from robustmerge.formats.llava.to_peft import convert_to_peft
from robustmerge.merging import write_merged
from robustmerge.method import Method
from robustmerge.stage.settings import UserError
from tests.merge_cases import QUIET
from tests.original_layout import (
    FIRST,
    RANK,
    STEM,
    draw_lora,
    draw_projector,
    edit_config,
    read_original,
    write_original,
)

# --- what is refused ----------------------------------------------------------------------------------------------


def without(*names: str):
    return lambda tensors: {name: x for name, x in tensors.items() if name not in names}


def put(name: str, *shape: int):
    return lambda tensors: {**tensors, name: torch.ones(shape)}


HEAD = "base_model.model.lm_head.lora_A.weight"
MLP = f"{STEM}mm_projector."
VISION = "base_model.model.model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"


def times(name: str, factor: float):
    return lambda tensors: {**tensors, name: tensors[name] * factor}


def of_dtype(name: str, dtype: torch.dtype):
    return lambda tensors: {**tensors, name: tensors[name].to(dtype)}


def with_values(**values: object):
    return lambda config: {**config, **values}


REFUSED = {
    "a missing tensor": ({"lora": without(f"{FIRST}B.weight")}, rf"{FIRST}B.weight is missing; an adapter of 2 layers"),
    "a missing layer": (
        {"lora": lambda tensors: {name: x for name, x in tensors.items() if "layers.0" not in name}},
        rf"{FIRST}A.weight is missing; .* has 28 LoRA tensors, this one 14",
    ),
    "fewer layers than the model": (
        {"llava": with_values(num_hidden_layers=3)},
        "num_hidden_layers is 3, but the tensors",
    ),
    "LoRA in the vision tower": ({"lora": put(VISION, 4, 32)}, f"{VISION} is LoRA in the vision tower"),
    "another tensor": ({"lora": put(HEAD, 4, 40)}, f"{HEAD} is no LoRA of a linear of the language model"),
    "lora_B of zeros": ({"lora": times(f"{FIRST}B.weight", 0)}, f"{FIRST}B.weight is zero everywhere"),
    "no number": ({"lora": times(f"{FIRST}A.weight", float("nan"))}, f"{FIRST}A.weight holds numbers that are not fin"),
    "whole numbers": ({"lora": lambda t: {**t, f"{FIRST}A.weight": t[f"{FIRST}A.weight"].int()}}, "torch.int32"),
    "two spellings": ({"lora": put(f"{FIRST}A.default.weight", 4, 40)}, "two spellings of one tensor"),
    "another rank": ({"config": with_values(r=16)}, r"has shape \[4, 40\], but rank 16"),
    "another width": ({"lora": put(f"{FIRST}A.weight", 4, 41)}, r"has shape \[4, 40\], but rank 4"),
    "no matrix": ({"lora": put(f"{FIRST}A.weight", 4)}, r"must be a matrix, got shape \[4\]"),
    "no alpha": ({"config": with_values(lora_alpha=None)}, "lora_alpha must be a finite number, got None"),
    "alpha that is no number": ({"config": with_values(lora_alpha=float("nan"))}, "a finite number, got nan"),
    "alpha larger than any float": ({"config": with_values(lora_alpha=10**400)}, "lora_alpha must be a finite number"),
    "alpha of nothing": ({"config": with_values(lora_alpha=0)}, "lora_alpha must be a number above 0, got 0"),
    "rank 0": ({"config": with_values(r=0)}, "r must be a whole number from 1 to"),
    "half a rank": ({"config": with_values(r=1.5)}, "r must be a whole number from 1 to .*, got 1.5"),
    "a dropout of text": ({"config": with_values(lora_dropout="x")}, "lora_dropout must be a number from 0 to 1"),
    "another start": ({"config": with_values(init_lora_weights="pissa")}, "'pissa' changes the base model"),
    "targets of another type": ({"config": with_values(target_modules=["q_proj", 5])}, "a text or a list of texts"),
    "another type": ({"config": with_values(rank_pattern=[["x"]])}, "rank_pattern must be a mapping or null"),
    "a tower of another type": ({"llava": with_values(mm_vision_tower=["x"])}, "mm_vision_tower must be one line"),
    "a width of another type": ({"llava": with_values(hidden_size={"a": 1})}, "hidden_size is {'a': 1}, but the tens"),
    "a complex projector": ({"projector": of_dtype(f"{MLP}2.bias", torch.complex64)}, "2.bias.* is complex64; allowed"),
    "a projector of whole numbers": ({"projector": of_dtype(f"{MLP}2.bias", torch.int64)}, "2.bias holds torch.int64"),
    "a sparse projector": ({"projector": lambda t: {**t, f"{MLP}2.weight": torch.eye(40).to_sparse()}}, "sparse"),
    "another method": ({"config": with_values(peft_type="IA3")}, "peft_type must be LORA, got 'IA3'"),
    "trained biases": ({"config": with_values(bias="lora_only")}, "bias must be 'none', got 'lora_only'"),
    "more that is saved": ({"config": with_values(modules_to_save=["lm_head"])}, "modules_to_save must be None, got"),
    "DoRA": ({"config": with_values(use_dora=True)}, "use_dora must be False, got True"),
    "no projector": ({"projector": None}, "non_lora_trainables.bin is missing: .* say allow_no_projector=true"),
    "half a projector": ({"projector": without(f"{MLP}2.bias")}, "mm_projector.2.bias is missing"),
    "a deeper projector": ({"projector": put(f"{MLP}4.bias", 40)}, f"{MLP}4.bias is no tensor of the projector; allow"),
    "trained embeddings": ({"projector": put("model.embed_tokens.weight", 4, 40)}, "embed_tokens.weight is no tensor"),
    "a projector of another width": ({"projector": put(f"{MLP}0.bias", 4)}, r"must have shape \[40\], got \[4\]"),
    "a projector with infinity": ({"projector": times(f"{MLP}0.bias", float("inf"))}, "0.bias holds numbers that are"),
    "another vision tower": (
        {"llava": with_values(mm_hidden_size=1024)},
        "mm_hidden_size is 1024, but the tensors have 32",
    ),
    "another projector": (
        {"llava": with_values(mm_projector_type="linear")},
        "mm_projector_type must be 'mlp2x_gelu', got",
    ),
    "LLaVA 1.6": ({"llava": with_values(image_aspect_ratio="anyres")}, "image_aspect_ratio must be 'pad' or 'square'"),
    "another language model": (
        {"llava": with_values(model_type="llava_mpt")},
        "model_type must be 'llava_llama' or 'llava'",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_exactly_a_llava_expert_is_refused_and_nothing_written(fault: str, tmp_path: Path) -> None:
    changes, message = REFUSED[fault]
    original = write_original(tmp_path / "original", **changes)
    with pytest.raises(UserError, match=message) as raised:
        convert_to_peft(original, tmp_path / "ours", "base")
    lines = str(raised.value).splitlines()
    assert all(str(original) in line or line.startswith("(and ") for line in lines)
    assert not (tmp_path / "ours").exists()


def as_header(text: bytes, length: int | None = None) -> bytes:
    """A .safetensors file that is nothing but a header. length: the one it claims."""
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def as_zip(*names: str, content: bytes = b"N.", method: int = zipfile.ZIP_STORED, is_encrypted: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name in names:
            archive.writestr(name, content)
    entries = stream.getvalue()
    return entries.replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1") if is_encrypted else entries


HOSTILE = {
    "a header of 2**63 bytes.safetensors": as_header(b"{}", 2**63),
    "a header longer than the file.safetensors": as_header(b"{}", 10**6),
    "a list as header.safetensors": as_header(b"[1, 2]"),
    "a deep header.safetensors": as_header(b'{"a": ' + b"[" * 10**6),
    "a header of a million lists.safetensors": as_header(b"[" + b"[]," * 10**6 + b"[]]"),
    "no UTF-8.safetensors": as_header(b"\xff\xfe"),
    "nothing.safetensors": b"",
    "nothing.bin": b"",
    "a pickle of millions of steps.bin": b"N" * 3 * 10**6,
    "a pickle that inflates.bin": as_zip("a/data.pkl", content=b"N" * 2 * 10**7, method=zipfile.ZIP_DEFLATED),
    "another compression.bin": as_zip("a/data.pkl", method=zipfile.ZIP_BZIP2),
    "an encrypted part.bin": as_zip("a/data.pkl", is_encrypted=True),
    "no pickle.bin": as_zip("a/data/0"),
    "two pickles.bin": as_zip("a/data.pkl", "b/data.pkl"),
    "a text longer than the file.bin": b"\x8d" + (2**62).to_bytes(8, "little"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_recognising_a_folder_trusts_no_size_that_a_file_claims(name: str, tmp_path: Path) -> None:
    original = write_original(tmp_path / "original")
    (original / "adapter_model.bin").unlink()
    (original / f"adapter_model{Path(name).suffix}").write_bytes(HOSTILE[name])
    started = time.process_time()
    assert not is_original(original) and not has_old_names(original)
    assert time.process_time() - started < 2


def test_folders_that_hold_something_else_are_refused_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    for folder, files in (("model", "found: config.json"), ("nowhere", "no such folder")):
        with pytest.raises(UserError, match=f"it needs adapter_config.json and adapter_model.bin or .*{files}"):
            convert_to_peft(tmp_path / folder, tmp_path / "ours", "base")
    (write_original(tmp_path / "damaged") / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read as a JSON file"):
        convert_to_peft(tmp_path / "damaged", tmp_path / "ours", "base")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "adapter_model.bin", "non_lora_trainables.bin"])
@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a pointer", "a broken link"])
def test_what_lies_in_a_file_s_place_is_said_and_never_opened(name: str, kind: str, tmp_path: Path) -> None:
    original = write_original(tmp_path / "original")
    (original / name).unlink()
    if kind == "a pointer":
        (original / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "a broken link":
        (original / name).symlink_to(tmp_path / "nowhere")
    else:
        (os.mkdir if kind == "a folder" else os.mkfifo)(original / name)
    with pytest.raises(UserError, match=f"{name} .*{'link' if kind == 'a broken link' else kind}"):
        convert_to_peft(original, tmp_path / "ours", "base")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("published", [0, 3])
def test_a_conversion_that_is_cut_short_leaves_nothing_and_the_same_command_goes_on(
    published: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, done = write_original(tmp_path / "original"), []

    def replace(source: str, target: str) -> None:
        if len(done) == published:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(os.rename(source, target))

    ours, back = tmp_path / "ours", tmp_path / "back"
    for folder, convert in (
        (ours, lambda: convert_to_peft(original, ours, "base")),
        (back, lambda: convert_to_original(ours, back)),
    ):
        done.clear()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, "replace", replace)
            convert()
        assert not list(folder.iterdir())
        convert()
    assert read_original(back).keys() == read_original(original).keys()


def test_a_base_of_another_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {(2, 40): Llava15Size("hub/small", "own/small", 2), (3, 48): Llava15Size("hub/large", "own/large", 2)}
    monkeypatch.setattr("robustmerge.formats.llava.to_peft.LLAVA15", sizes)
    original = write_original(tmp_path / "original")
    with pytest.raises(UserError, match="is an adapter of the size of hub/small, and the base is hub/large"):
        convert_to_peft(original, tmp_path / "ours", "hub/large")
    assert not (tmp_path / "ours").exists()
    assert convert_to_peft(original, tmp_path / "ours", "")["base"] == "hub/small"


def test_a_missing_projector_is_taken_where_it_is_meant(tmp_path: Path) -> None:
    original = write_original(tmp_path / "original", projector=None)
    convert_to_peft(original, tmp_path / "ours", "base", allow_no_projector=True)
    assert open_adapter(tmp_path / "ours").extras == ()
    with pytest.raises(UserError, match="has no multi_modal_projector.linear_1.weight"):
        convert_to_original(tmp_path / "ours", tmp_path / "back")
    convert_to_original(tmp_path / "ours", tmp_path / "back", allow_no_projector=True)
    assert read_original(tmp_path / "back").keys() == draw_lora().keys()


# --- from ours ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    convert_to_peft(write_original(tmp_path / "original"), tmp_path / "ours", "base")
    return tmp_path / "ours"


def test_a_merged_adapter_goes_to_the_original_format(tmp_path: Path) -> None:
    experts = {}
    for seed, name in enumerate("ab"):
        convert_to_peft(write_original(tmp_path / name, seed), tmp_path / f"ours {name}", "base")
        experts[name] = tmp_path / f"ours {name}"
    write_merged(tmp_path / "merged", Method("sum", strength=1.0), experts, **QUIET)
    with pytest.raises(UserError, match="2 layers of width 40, which is no LLaVA-1.5-7B or 13B: name .* like=FOLDER"):
        convert_to_original(tmp_path / "merged", tmp_path / "back")
    record = convert_to_original(tmp_path / "merged", tmp_path / "back", like=tmp_path / "a", vision_tower="my/tower")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["mm_vision_tower"] == "my/tower"
    assert any("'llava' and 'lora' in its name" in note for note in record["notes"])
    tensors, config = read_original(tmp_path / "back"), json.loads((tmp_path / "back" / CONFIG).read_text())
    expected = (
        draw_projector(0)[f"{STEM}mm_projector.0.weight"] + draw_projector(1)[f"{STEM}mm_projector.0.weight"]
    ) / 2
    torch.testing.assert_close(tensors[f"{STEM}mm_projector.0.weight"], expected)
    scale = config["lora_alpha"] / config["r"]
    delta = scale * tensors[f"{FIRST}B.weight"] @ tensors[f"{FIRST}A.weight"]
    pair = open_adapter(tmp_path / "merged").pair("model.language_model.layers.0.self_attn.q_proj")
    torch.testing.assert_close(delta, pair.delta())
    assert convert_to_original(tmp_path / "merged", tmp_path / "my-LLaVA-LoRA", like=tmp_path / "a")["notes"][1:] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank_pattern": {"q_proj": RANK}}, "ranks of their own.*merge again with .* merge.out.rank=16"),
        (
            {"alpha_pattern": {"q_proj": 3}},
            "scalings of their own.*robustmerge merge task_arithmetic FOLDER .*strength=1",
        ),
        ({"use_rslora": True}, "scales by alpha/r; merge it alone"),
    ],
)
def test_what_the_original_format_cannot_hold_is_refused_with_the_remedy(values, message, ours: Path) -> None:
    with pytest.raises(UserError, match=message):
        convert_to_original(edit_config(ours, **values), ours.parent / "back")
    assert not (ours.parent / "back").exists()


def test_dora_and_dense_deltas_are_refused_on_the_way_back(ours: Path) -> None:
    tensors = load_file(ours / WEIGHTS)
    for name in [name for name in tensors if "lora_B" in name]:
        tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(len(tensors[name]))
    save_file(tensors, ours / WEIGHTS)
    with pytest.raises(UserError, match="has no magnitudes; train with peft.use_dora=false"):
        convert_to_original(edit_config(ours, use_dora=True), ours.parent / "back")
    (ours / "delta_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds dense deltas, .*merge again with .*merge.out.rank=16"):
        convert_to_original(ours, ours.parent / "back")


def test_a_whole_module_beside_the_projector_is_refused_on_the_way_back(ours: Path) -> None:
    tensors = load_file(ours / WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(3, 40)}, ours / WEIGHTS)
    with pytest.raises(UserError, match=r"lm_head.weight is trained whole, and only the projector has a place"):
        convert_to_original(
            edit_config(ours, modules_to_save=["multi_modal_projector", "lm_head"]), ours.parent / "back"
        )


def test_an_adapter_is_never_converted_onto_itself_or_twice(ours: Path) -> None:
    with pytest.raises(UserError, match="is the adapter itself"):
        convert_to_original(ours, ours)
    with pytest.raises(UserError, match="is in LLaVA's own format already"):
        convert_to_original(ours.parent / "original", ours.parent / "back")
