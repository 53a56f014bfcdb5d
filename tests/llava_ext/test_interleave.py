"""LLaVA-interleave as the Hub keeps it: ids, pixels, logits and answers equal a computation that shares none of it.

The ids are also those of the Hub's own chat template, behind the system sentence that the base was trained with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from llava_ext.conversation import IGNORE, build_segments, encode, render
from llava_ext.data import Reader, encode_prompt, load_reader, pad
from llava_ext.exported_processor import set_processor
from llava_ext.generate import Generator
from llava_ext.settings import Recipe
from pipeline.config import read_config
from pipeline.program import compose
from robustmerge.stage.pictures import read_picture
from robustmerge.stage.records import Example
from robustmerge.stage.settings import UserError
from tests import hub_layout
from tests.independent_llava import IndependentLlava, Pixels, draw_picture
from tests.interleave_layout import (
    END,
    IMAGE,
    LANGUAGE,
    MEAN,
    SIDE,
    SPECIAL,
    STD,
    TOWER,
    build_tokenizer,
    draw_interleave,
    write_checkpoint,
)

TEMPLATE, PATCHES = "qwen_1_5", 9
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QUESTIONS = ["Colour?", "What is the object in the image?\nA. red\nB. dark blue", "\n  Ünïcode, 42 😀 ", ""]
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), eos_token=END)
independent_pixels = Pixels(SIDE, MEAN, STD)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("interleave"))


@pytest.fixture(scope="module")
def generator(checkpoint) -> Generator:
    return Generator(checkpoint, TEMPLATE)


@pytest.fixture(scope="module")
def reader(generator) -> Reader:
    return generator.reader


# ids


def ask(question: str) -> list[dict]:
    """A question about a picture as a message of the Hub's chat templates."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def test_prompts_have_the_ids_of_the_hubs_template_behind_the_system_sentence(checkpoint, reader):
    processor, picture = AutoProcessor.from_pretrained(checkpoint), draw_picture((50, 33), "RGB")
    for question in QUESTIONS:
        text = SYSTEM + processor.apply_chat_template(ask(question), add_generation_prompt=True)
        expected = processor(text=text, images=picture, return_tensors="pt")["input_ids"][0].tolist()
        assert encode_prompt(reader, Example("q", question, "", "x.png")) == expected
        assert expected.count(SPECIAL[IMAGE]) == PATCHES


def test_prompts_without_a_picture_have_one_line_break_before_the_question(checkpoint, reader):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for question in QUESTIONS:
        text = f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        assert encode_prompt(reader, Example("q", question, "")) == tokenizer(text)["input_ids"]


def test_written_out_special_tokens_of_a_question_stay_text(reader):
    ids = encode_prompt(reader, Example("q", f"{END} and {IMAGE}", ""))
    assert ids.count(SPECIAL[END]) == 2 and SPECIAL[IMAGE] not in ids  # behind the system sentence and the question


TEXT = st.text(max_size=20)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.booleans())
def test_labels_cover_exactly_the_answers_and_their_end_tokens(turns, image):
    ids, labels = encode(TOKENIZER, build_segments(TEMPLATE, turns, image), [SPECIAL[IMAGE]])
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
    learned = [TOKENIZER(answer, split_special_tokens=True)["input_ids"] + [SPECIAL[END]] for _, answer in turns]
    assert [label for label in labels if label != IGNORE] == [token for answer in learned for token in answer]
    prompt = encode(TOKENIZER, build_segments(TEMPLATE, [*turns[:-1], (turns[-1][0], None)], image), [SPECIAL[IMAGE]])
    assert ids[: len(prompt.ids)] == prompt.ids
    assert labels[len(prompt.ids) :] == [*learned[-1], IGNORE]  # only a line break behind the last answer


def test_a_template_is_refused_for_a_base_whose_tokenizer_lacks_its_special_tokens(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"no beginning-of-sequence token, .*'vicuna_v1' needs; .*: qwen_1_5, chatml$"):
        load_reader(checkpoint, "vicuna_v1")
    with pytest.raises(UserError, match=r"no <\|im_start\|> and no <\|im_end\|>, .*: vicuna_v1, vicuna_v1_short$"):
        load_reader(hub_layout.write_checkpoint(tmp_path), TEMPLATE)


def test_an_exported_model_asks_other_programs_for_the_same_tokens(tmp_path, reader):
    folder, picture = write_checkpoint(tmp_path), draw_picture((50, 33), "RGB")
    set_processor(folder, TEMPLATE, "pad")
    processor = AutoProcessor.from_pretrained(folder)
    for question in QUESTIONS:
        text = processor.apply_chat_template(ask(question), add_generation_prompt=True)
        batch = processor(text=text, images=picture, return_tensors="pt")
        assert batch["input_ids"][0].tolist() == encode_prompt(reader, Example("q", question, "", "x.png"))
        assert torch.equal(batch["pixel_values"], reader.pixels([picture]))
    assert load_reader(folder, TEMPLATE).pixels.size == (SIDE, SIDE)


# pixels


@pytest.mark.parametrize("size", [(64, 48), (48, 65), (SIDE, SIDE), (5, 7), (200, 3)])
def test_pictures_are_padded_or_made_square_whole_as_the_hubs_processor_makes_them(checkpoint, reader, size):
    picture = draw_picture(size, "RGB")
    for pixels, mode in ((reader.pixels, "pad"), (reader.cropped, "squash")):
        np.testing.assert_allclose(pixels([picture])[0].numpy(), independent_pixels(picture, mode), atol=2e-6)
    hub = SiglipImageProcessorPil.from_pretrained(checkpoint)(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(reader.cropped([picture]), hub, atol=2e-6, rtol=0)


# logits and answers


def look(tower: nn.Module, pixels: Tensor) -> Tensor:
    """The last layer before its norm: SigLIP has no class token."""
    return tower.encoder(inputs_embeds=tower.embeddings(pixels)).last_hidden_state[0]


def take_apart() -> IndependentLlava:
    language = Qwen2ForCausalLM(Qwen2Config(**LANGUAGE, tie_word_embeddings=True))
    tower = SiglipVisionModel(SiglipVisionConfig(**TOWER))
    return IndependentLlava(tower, language, look, draw_interleave(), end=SPECIAL[END])


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> tuple[Path, list[Example]]:
    """Questions of several lengths, with pictures of several shapes and kinds, and without."""
    folder, looks = tmp_path_factory.mktemp("pictures"), [((64, 48), "RGB"), None, ((30, 77), "L"), ((90, 20), "RGBA")]
    examples = []
    for index, question in enumerate(["Colour?", *QUESTIONS, "Name the colour of this square in the image."]):
        name = f"{index}.png" if (drawn := looks[index % len(looks)]) else None
        if drawn:
            draw_picture(*drawn, index).save(folder / name)
        examples.append(Example(str(index), question, "", name))
    return folder, examples


def pieces(folder: Path, example: Example) -> tuple[list[int], np.ndarray | None, list[int]]:
    """What comes before the picture, its pixels, and what comes after it; without one all is before."""
    text = render(TEMPLATE, [(example.text, None)], example.image is not None)
    before, _, after = text.partition(IMAGE)
    pixels = independent_pixels(read_picture(folder / example.image), "pad") if example.image else None
    return TOKENIZER(before)["input_ids"], pixels, TOKENIZER(after)["input_ids"]


def test_logits_of_a_left_padded_batch_equal_those_of_each_prompt_alone(generator, asked):
    folder, examples = asked
    prompts = [encode_prompt(generator.reader, example) for example in examples]
    pictures = [read_picture(folder / example.image) for example in examples if example.image]
    batch = {"input_ids": pad(prompts, 0, "left"), "attention_mask": pad([[1] * len(p) for p in prompts], 0, "left")}
    with torch.no_grad():
        logits = generator.model(**batch, pixel_values=generator.reader.pixels(pictures)).logits[:, -1]
    alone = take_apart()
    expected = torch.stack([alone.logits(*pieces(folder, example)) for example in examples])
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
    assert expected.std(dim=1).min() > 0.5  # so large that the tolerance means something


def test_answers_are_the_greedy_ones(generator, asked):
    folder, examples = asked
    alone, tokenizer = take_apart(), generator.reader.tokenizer
    expected = [alone.greedy(*pieces(folder, example), 4) for example in examples]
    assert len({tuple(answer) for answer in expected}) > 3
    assert generator(examples, folder, 4) == [
        tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected
    ]


def test_the_embeddings_of_a_loaded_model_are_one_matrix(generator):
    assert generator.model.lm_head.weight is generator.model.model.language_model.embed_tokens.weight


def test_the_model_is_trained_by_the_papers_recipe_on_one_gpu_unless_told_otherwise():
    config = read_config(compose("train_all", ["model=llava_interleave_05b"]))
    assert (config.model.recipe, config.model.template) == (Recipe(), TEMPLATE)
    assert (config.peft.r, config.peft.alpha, config.trainer.engine) == (16, 32, "single_gpu")
