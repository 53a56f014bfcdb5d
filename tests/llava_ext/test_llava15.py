"""LLaVA-1.5 as the Hub keeps it: prompt ids, pixels, logits and answers equal a computation that shares none of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava_ext.conversation import IGNORE
from llava_ext.data import Reader, encode_prompt, load_reader, pad
from llava_ext.exported_processor import set_processor
from llava_ext.generate import Generator
from llava_ext.settings import Recipe
from pipeline.config import read_config
from pipeline.program import compose
from robustmerge.stage.pictures import read_picture
from robustmerge.stage.records import Example
from tests.hub_layout import GOLDEN, IMAGE, LANGUAGE, MEAN, PAD, SIDE, STD, TOWER, draw_weights, write_checkpoint
from tests.independent_llava import IndependentLlava, Pixels, draw_picture

RECORDED = json.loads((GOLDEN / "prompts.json").read_text())
PROMPTS = RECORDED["prompts"]
PATCHES = 9
SIZES = [(64, 48), (48, 65), (101, 37), (SIDE, SIDE), (SIDE, SIDE - 1), (5, 7), (200, 3), (1, 1)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def generator(checkpoint) -> Generator:
    return Generator(checkpoint, "vicuna_v1")


def expected_ids(row: dict) -> list[int]:
    """The beginning token, and the recorded ids around the picture."""
    return [1, *row["before"], *([IMAGE] * PATCHES + row["after"] if row["image"] else [])]


# ids


@pytest.mark.parametrize("legacy", [False, True])
def test_prompts_have_the_ids_that_the_original_gives_them(tmp_path, legacy):
    reader = load_reader(write_checkpoint(tmp_path, legacy=legacy), "vicuna_v1")
    for row in PROMPTS:
        assert reader.encode([(row["question"], None)], row["image"]).ids == expected_ids(row), row["question"]


def test_a_line_break_behind_the_picture_is_two_tokens_whatever_the_tokenizers_flag_says(tmp_path):
    example, whole = Example("q", "What is the object in the image?", "", "x.png"), {}
    for legacy in (False, True):
        folder = write_checkpoint(tmp_path / str(legacy), legacy=legacy)
        ids = encode_prompt(load_reader(folder, "vicuna_v1"), example)
        end = len(ids) - ids[::-1].index(IMAGE)
        assert ids[end : end + 3] == [29871, 13, 5618]  # a space, a line break, `What`
        whole[legacy] = AutoTokenizer.from_pretrained(folder)("USER: <image>\nWhat")["input_ids"][-3:]
    assert whole == {False: [IMAGE, 13, 5618], True: [29871, 13, 5618]}  # in one string the flag makes a difference


@pytest.mark.parametrize("legacy", [False, True])
def test_an_exported_model_asks_other_programs_for_the_same_tokens(tmp_path, legacy):
    folder = write_checkpoint(tmp_path, legacy=legacy)
    example, picture = Example("q", "What is the object in the image?", "", "x.png"), draw_picture((50, 33), "RGB")
    reader = load_reader(folder, "vicuna_v1")
    set_processor(folder, "vicuna_v1", "pad")
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": example.text}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor(text=text, images=picture, return_tensors="pt")
    assert batch["input_ids"][0].tolist() == encode_prompt(reader, example)
    assert torch.equal(batch["pixel_values"], reader.pixels([picture]))


def test_written_out_special_tokens_of_a_question_stay_text(checkpoint):
    ids = encode_prompt(load_reader(checkpoint, "vicuna_v1"), Example("q", "</s> and <image> and <pad>", ""))
    assert not {2, IMAGE, PAD} & set(ids)


@pytest.mark.parametrize("legacy", [False, True])
def test_of_an_answer_the_same_tokens_are_learned_as_by_the_original(tmp_path, legacy):
    reader = load_reader(write_checkpoint(tmp_path, legacy=legacy), "vicuna_v1")
    for row in RECORDED["answers"]:
        encoded = reader.encode([(row["question"], row["answer"])], row["image"])
        picture = [IMAGE] * PATCHES if row["image"] else []
        assert encoded.ids == [1, *row["before"], *picture, *row["last"], 2]
        unlearned_count = len(encoded.ids) - row["learned"] - 1
        assert encoded.labels == [IGNORE] * unlearned_count + encoded.ids[unlearned_count:]


# pixels


independent_pixels = Pixels(SIDE, MEAN, STD)


@pytest.mark.parametrize("mode", ["pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_any_shape_become_the_originals_pixels(checkpoint, size, mode):
    reader, picture = load_reader(checkpoint, "vicuna_v1"), draw_picture(size, "RGB")
    pixels = (reader.pixels if mode == "pad" else reader.cropped)([picture])
    np.testing.assert_allclose(pixels[0].numpy(), independent_pixels(picture, mode), atol=2e-6)


@pytest.mark.parametrize("colours", ["L", "LA", "RGBA", "CMYK", "P", "1"])
def test_pictures_of_any_kind_become_the_originals_pixels(checkpoint, colours):
    reader, picture = load_reader(checkpoint, "vicuna_v1"), draw_picture((50, 33), colours)
    np.testing.assert_allclose(reader.pixels([picture])[0].numpy(), independent_pixels(picture, "pad"), atol=2e-6)


def test_the_pillow_backend_is_taken_whether_or_not_torchvision_is_there(checkpoint):
    reader = load_reader(checkpoint, "vicuna_v1")
    for pixels, pads in ((reader.pixels, True), (reader.cropped, False)):
        assert type(pixels.processor).__name__ == "LlavaImageProcessorPil"
        assert pixels.processor.do_pad is pads
        assert pixels.processor.do_center_crop


# logits and answers


def take_apart() -> IndependentLlava:
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER))
    language = LlamaForCausalLM(LlamaConfig(**LANGUAGE, tie_word_embeddings=False))
    return IndependentLlava(tower, language, look, draw_weights(), end=2)


def look(tower: nn.Module, pixels: Tensor) -> Tensor:
    """The layer before the last one, without the class token."""
    return tower(pixels, output_hidden_states=True).hidden_states[-2][0, 1:]


def pieces(row: dict, picture: Image.Image | None) -> tuple[list[int], np.ndarray | None, list[int]]:
    """What comes before the picture, its pixels, and what comes after it."""
    pixels = independent_pixels(picture, "pad") if picture is not None else None
    return [1, *row["before"]], pixels, row["after"] if picture is not None else []


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> tuple[Path, list[dict], list[Example]]:
    """Questions of several lengths, with pictures of several shapes and kinds, and without."""
    folder = tmp_path_factory.mktemp("pictures")
    looks = [((64, 48), "RGB"), ((30, 77), "L"), ((SIDE, SIDE), "RGB"), ((90, 20), "RGBA")]
    rows, examples = [PROMPTS[index] for index in (0, 3, 4, 5, 12, 13)], []
    for index, row in enumerate(rows):
        name = f"{index}.png" if row["image"] else None
        if name:
            size, colours = looks[index % len(looks)]
            draw_picture(size, colours, index).save(folder / name)
        examples.append(Example(str(index), row["question"], "", name))
    assert {row["image"] for row in rows} == {True, False}
    return folder, rows, examples


def picture_of(folder: Path, example: Example) -> Image.Image | None:
    return read_picture(folder / example.image) if example.image else None


def batch_of(reader: Reader, folder: Path, examples: list[Example]) -> dict[str, Tensor]:
    prompts = [encode_prompt(reader, example) for example in examples]
    pictures = [picture for example in examples if (picture := picture_of(folder, example)) is not None]
    batch = {"input_ids": pad(prompts, PAD, "left"), "attention_mask": pad([[1] * len(p) for p in prompts], 0, "left")}
    return batch | ({"pixel_values": reader.pixels(pictures)} if pictures else {})


def test_logits_of_a_left_padded_batch_equal_those_of_each_prompt_alone(generator, questions):
    folder, rows, examples = questions
    with torch.no_grad():
        batch_logits = generator.model(**batch_of(generator.reader, folder, examples)).logits[:, -1]
    alone = take_apart()
    for row, example, logits in zip(rows, examples, batch_logits, strict=True):
        expected = alone.logits(*pieces(row, picture_of(folder, example)))
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
        assert expected.std() > 0.5  # so large that the tolerance means something


def test_answers_are_the_greedy_ones_though_the_folder_says_to_sample(generator, questions):
    folder, rows, examples = questions
    alone, tokenizer = take_apart(), generator.reader.tokenizer
    expected = [alone.greedy(*pieces(row, picture_of(folder, one)), 4) for row, one in zip(rows, examples, strict=True)]
    assert len({tuple(answer) for answer in expected}) == len(expected)
    assert generator(examples, folder, 4) == [
        tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected
    ]


def test_text_only_questions_need_no_picture_in_their_batch(generator, questions):
    folder, rows, examples = questions
    (one,) = [example for example in examples if example.question_id == "2"]
    ids = take_apart().greedy(*pieces(rows[2], None), 3)
    assert generator([one], folder, 3) == [generator.reader.tokenizer.decode(ids, skip_special_tokens=True).strip()]


def test_a_checkpoint_in_parts_and_in_half_precision_is_the_same_model(tmp_path, questions):
    folder, _, examples = questions
    whole = write_checkpoint(tmp_path / "whole", torch.float16)
    parts = write_checkpoint(tmp_path / "parts", torch.float16, shards=3)
    answers = [Generator(base, "vicuna_v1", dtype=torch.float16)(examples, folder, 3) for base in (whole, parts)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["llava15_7b", "llava15_13b"])
def test_the_models_are_trained_by_the_published_recipe_on_gpus_unless_told_otherwise(name):
    config, other = (read_config(compose("train_all", [f"model={name}", *more])) for more in ([], ["trainer=ddp"]))
    assert (config.model.recipe, config.model.template) == (
        Recipe(too_long="truncate", group_by_length=True),
        "vicuna_v1",
    )
    assert (config.peft.r, config.peft.alpha, config.model.precision) == (16, 32, "fp16")
    assert (config.trainer.engine, other.trainer.engine) == ("zero2", "ddp")
    assert read_config(compose("train_all", [])).trainer.engine == "cpu"
