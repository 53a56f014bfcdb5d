"""Exported models: other programs get the same prompts, pixels and answers by its processor and template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from llava_ext.conversation import TEMPLATES, render
from llava_ext.data import encode_prompt, load_reader
from llava_ext.exported_processor import chat_template, set_processor
from llava_ext.generate import Generator
from robustmerge.formats.adapter import open_adapter
from robustmerge.formats.full_model import export_model
from robustmerge.method_parts import Out
from robustmerge.stage.settings import UserError
from tests.robustmerge.test_delta_sources import save_llava_expert
from tests.robustmerge.test_outputs import copy_out
from tests.tiny_model import TEMPLATE, draw_examples, write_base


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A base, an expert as adapter and as deltas, and questions with and without pictures, square or not."""
    root = tmp_path_factory.mktemp("ground")
    base = write_base(root / "base")
    expert = save_llava_expert(root / "expert", base)
    delta = copy_out(root / "delta", Out(format="delta"), open_adapter(expert), base)
    return root, {"base": base, "adapter": expert, "delta": delta}, draw_examples(root, 8, seed=5)


def answer_by_processor(folder: Path, examples: list, root: Path) -> list[str]:
    """Answers of a model folder by its own processor and chat template, one question at a time, as lmms-eval asks."""
    model, processor = LlavaForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    answers = []
    for example in examples:
        image = [{"type": "image", "url": "picture"}] if example.image else []
        messages = [{"role": "user", "content": [*image, {"type": "text", "text": example.text}]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(root / example.image)] if example.image else None
        inputs = processor(images=pictures, text=text, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
        answers.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return [answer.strip() for answer in answers]


@pytest.mark.parametrize("kind", ["base", "adapter", "delta"])
def test_an_exported_source_gives_other_programs_the_same_answers(ground, tmp_path, kind):
    root, sources, examples = ground
    folder, source = tmp_path / "model", None if kind == "base" else sources[kind]
    export_model(sources["base"], source, folder)
    set_processor(folder, TEMPLATE, "pad")
    generate = Generator(sources["base"], TEMPLATE)
    alone = generate(examples, root, 8)
    generate.use(source)
    ours = generate(examples, root, 8)
    assert answer_by_processor(folder, examples, root) == ours
    assert (ours == alone) == (kind == "base")
    assert (folder / "model.safetensors").is_symlink() == (kind == "base")


@pytest.mark.parametrize("image", ["pad", "crop"])
def test_tokens_and_pixels_of_an_exported_folder_are_those_of_its_base(ground, tmp_path, image):
    root, sources, examples = ground
    export_model(sources["base"], None, tmp_path)
    set_processor(tmp_path, TEMPLATE, image)
    reader, processor = load_reader(sources["base"], TEMPLATE), AutoProcessor.from_pretrained(tmp_path)
    for example in (example for example in examples if example.image):
        picture = Image.open(root / example.image)
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.text}]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        batch = processor(images=[picture], text=text, return_tensors="pt")
        assert batch["input_ids"][0].tolist() == encode_prompt(reader, example)
        pixels = reader.pixels if image == "pad" else reader.cropped
        assert torch.equal(batch["pixel_values"], pixels([picture]))


def test_older_files_of_a_published_folder_do_not_outlive_its_export(ground, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(ground[1]["base"], base)
    config = json.loads((base / "processor_config.json").read_text())
    images = {**config.pop("image_processor"), "do_pad": False}
    (base / "processor_config.json").write_text(json.dumps(config))
    (base / "preprocessor_config.json").write_text(json.dumps(images))
    (base / "chat_template.json").write_text(json.dumps({"chat_template": "nothing of the question"}))
    export_model(base, None, tmp_path / "model")
    set_processor(tmp_path / "model", TEMPLATE, "pad")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert processor.image_processor.do_pad and "USER" in processor.chat_template
    assert {"chat_template.json", "preprocessor_config.json"}.isdisjoint(
        file.name for file in (tmp_path / "model").iterdir()
    )
    assert (base / "preprocessor_config.json").exists()


def test_the_first_token_occurs_once_whether_template_or_tokenizer_adds_it(ground):
    tokenizer = AutoTokenizer.from_pretrained(ground[1]["base"])
    for adds in (False, True):
        if adds:
            begin = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
            tokenizer.backend_tokenizer.post_processor = begin
        tokenizer.chat_template = chat_template(TEMPLATE, tokenizer)
        messages = [{"role": "user", "content": "Colour?"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 1


def test_an_unknown_image_mode_or_template_is_refused(ground, tmp_path):
    export_model(ground[1]["base"], None, tmp_path)
    for template, image in (("vicuna_v2", "pad"), (TEMPLATE, "stretch")):
        with pytest.raises(UserError, match="unknown"):
            set_processor(tmp_path, template, image)


@pytest.fixture(scope="module")
def tokenizer(ground):
    return AutoTokenizer.from_pretrained(ground[1]["base"])


@given(questions=st.lists(st.text(), min_size=1, max_size=3), template=st.sampled_from(sorted(TEMPLATES)))
def test_the_chat_template_renders_either_form_of_messages_as_our_template(tokenizer, questions, template):
    tokenizer.chat_template = chat_template(template, tokenizer)
    turns = [(question, "yes") for question in questions[:-1]] + [(questions[-1], None)]
    expected = "<s>" * TEMPLATES[template].begins + render(template, turns, image=True)
    for as_parts in (False, True):
        messages = []
        for index, (question, answer) in enumerate(turns):
            parts = [{"type": "text", "text": question}]
            whole = question if index else f"<image>\n{question}"
            parts = parts if index else [{"type": "image"}, *parts]
            messages.append({"role": "user", "content": parts if as_parts else whole})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
