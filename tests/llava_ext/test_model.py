"""The folder of a base model: its checks, and what their messages say."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_ext.generate import Generator
from llava_ext.model import load_model
from robustmerge.stage.settings import UserError
from tests.hub_layout import LANGUAGE, TOWER, draw_weights, write_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_read_in_the_requested_precision_whatever_that_of_their_files(tmp_path, dtype):
    model = load_model(write_checkpoint(tmp_path, dtype, shards=2), torch.float32)
    weight = draw_weights()["language_model.model.layers.1.mlp.up_proj.weight"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.language_model.layers[1].mlp.up_proj.weight, weight.to(dtype).float())


def change(file: Path, **values: object) -> None:
    """Set top-level keys of a JSON file; None takes a key away."""
    content = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def without(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def with_config(**values: object) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("config.json"), "it has no config.json"),
        (without("tokenizer.json"), "it has neither tokenizer.json nor tokenizer.model"),
        (without("model.safetensors"), "it has neither model.safetensors nor pytorch_model.bin"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (with_config(model_type="llama"), "is no LLaVA: its config.json says model_type 'llama'"),
        (with_config(model_type=None), "is no LLaVA: its config.json says model_type None"),
        (with_config(model_type="llava_llama"), "is a LLaVA in the layout of the original code"),
        (with_config(mm_vision_tower="openai/clip"), "is a LLaVA in the layout of the original code"),
        (with_config(vision_config={"model_type": "dinov2"}), "is a dinov2; allowed: clip_vision_model, siglip_vision"),
        (with_config(image_token_index=319), "the text '▁A'; the tokenizer's '<image>' is 32000"),
        (with_config(image_token_index=32064), "pictures at token 32064, but embeddings for 32064"),
        (lambda folder: change(folder / "tokenizer_config.json", pad_token=None), "has no pad token"),
        (
            lambda folder: change(folder / "preprocessor_config.json", crop_size={"height": 28, "width": 28}),
            "pictures become 28 x 28 pixels (crop_size), the vision tower takes 42 x 42",
        ),
        (with_config(vision_config={**TOWER, "num_hidden_layers": 4}), "weights of {} are missing; the first is"),
        (with_config(vision_config={**TOWER, "num_hidden_layers": 2}), "belong to no part of a LLaVA; the first is"),
        (with_config(vision_config={**TOWER, "intermediate_size": 41}), "another shape than config.json says"),
    ],
)
def test_a_folder_that_is_no_complete_llava_is_refused(tmp_path, spoil, message):
    folder = write_checkpoint(tmp_path / "base")
    spoil(folder)
    with pytest.raises(UserError) as error:
        Generator(folder, "vicuna_v1")
    assert message.format(folder) in str(error.value)


FAULTS = (
    (lambda folder: (folder / "config.json").write_text('{"a":' + "[" * 10**5), "config.json cannot be read"),
    (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json cannot be read"),
    (lambda folder: os.mkfifo(folder / "special_tokens_map.json"), "special_tokens_map.json should be a file"),
    (with_config(vision_config="x"), "the vision tower of {} is a x"),
    (with_config(vision_config={**TOWER, "patch_size": None}), "config.json is no config of a LLaVA"),
    (with_config(text_config={**LANGUAGE, "hidden_size": [1]}), "config.json is no config of a LLaVA"),
    (with_config(text_config={**LANGUAGE, "num_hidden_layers": 10**12}), "a model of 1000000000003 layers"),
    (with_config(text_config={**LANGUAGE, "vocab_size": 10**10}), "is incomplete: its config.json describes a model"),
    (lambda folder: change(folder / "tokenizer_config.json", added_tokens_decoder={"1": 5}), "the tokenizer of {}"),
    (lambda folder: change(folder / "processor_config.json", image_processor=7), "the image processor of {}"),
)


def test_a_faulty_file_of_a_model_is_one_message_and_takes_no_memory(tmp_path):
    folder = write_checkpoint(tmp_path / "base")
    files = {file: file.read_bytes() for file in folder.glob("*.json")}
    for spoil, message in FAULTS:
        spoil(folder)
        with pytest.raises(UserError) as error:
            Generator(folder, "vicuna_v1")
        assert message.format(folder) in str(error.value)
        for file in folder.glob("*.json"):
            file.write_bytes(files[file]) if file in files else file.unlink()


def test_a_part_that_is_not_there_is_named(tmp_path):
    folder = write_checkpoint(tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="names model-00002-of-00003.safetensors, which is not there"):
        load_model(folder, torch.float32)


def test_damaged_weights_are_one_message(tmp_path):
    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(UserError, match=f"cannot read {folder / 'model.safetensors'}"):
        load_model(folder, torch.float32)
