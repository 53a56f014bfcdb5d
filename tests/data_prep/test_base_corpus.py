"""The corpus of the small base model: layout, labels, conventions, and that it gives no task away.

Needs `datasets` (reads and writes in tmp_path only).
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from random import Random

import pytest
import yaml
from PIL import Image

from data_prep.mini.corpus import PROMPT_WORDS, sample_scene
from data_prep.mini.dialogues import TAGS, converse
from data_prep.mini.scenes import HEADS
from data_prep.mini.tasks import GENERATORS
from data_prep.prepare import prepare_corpus
from data_prep.settings import BaseCorpus
from robustmerge.stage.address import REPOSITORY, address_folder
from robustmerge.stage.files import sha256_of

PROMPTS = {
    file.stem: yaml.safe_load(file.read_text())["prompt"]
    for file in sorted((REPOSITORY / "configs/task/mini").glob("*.yaml"))
}
INSTRUCTIONS = {re.sub(r"\s*\{\w+\}\s*", "", prompt) for prompt in PROMPTS.values()}


def write(root: Path, settings: BaseCorpus) -> Path:
    return prepare_corpus(address_folder(root, "data", "base", "corpus", 1, settings, {}), settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("runs"), BaseCorpus(images=700, dialogues=900, held_out=50, jobs=1))


@pytest.fixture(scope="module")
def turns() -> list[tuple[str, str]]:
    """All turns of 8000 dialogues, as the corpus draws them but without pictures."""
    rngs = [Random(number) for number in range(8000)]
    return [(turn.question, turn.answer) for rng in rngs for turn in converse(rng, sample_scene(rng))]


def words_of(text: str) -> list[str]:
    return re.findall(r"\d\.\d\d|\w+|[^\w\s]", text)


def test_the_folder_has_the_promised_layout(folder):
    import datasets

    heads = json.loads((folder / "heads.json").read_text())
    vision = datasets.load_from_disk(str(folder / "vision"))
    instruct = datasets.load_from_disk(str(folder / "instruct"))
    assert heads == {head: len(values) for head, values in HEADS.items()}
    assert vision.column_names == ["image", *heads] and len(vision) == 700
    held_out = datasets.load_from_disk(str(folder / "held_out"))
    assert len(instruct) == 900 and len(held_out) == 50
    assert instruct[700]["image"] == vision[0]["image"]
    assert not set(held_out["image"]) & set(vision["image"])
    for dialogues in (instruct, held_out):
        assert dialogues.column_names == ["image", "turns", "skills"]
        assert Image.open(io.BytesIO(dialogues[0]["image"])).size == (48, 48)
        assert all(1 <= len(turns) <= 4 and all(len(turn) == 2 for turn in turns) for turns in dialogues["turns"])
        assert [len(skills) for skills in dialogues["skills"]] == [len(turns) for turns in dialogues["turns"]]
    assert all(any(tag in question for tag in TAGS) for turns in held_out["turns"] for question, _ in turns)
    assert {"colour", "box", "scene", "letter"} < {skill for skills in instruct["skills"] for skill in skills}


def test_every_value_of_every_head_occurs_and_none_beyond(folder):
    import datasets

    vision = datasets.load_from_disk(str(folder / "vision"))
    for head, values in HEADS.items():
        possible = set(range(-1, len(values))) - ({-1} if head in ("kind", "quality", "rendition") else set())
        impossible = {0, 1} if head in ("right", "bottom") else {5, 6} if head in ("left", "top") else set()
        assert set(vision[head]) == possible - impossible, head


def test_the_number_of_processes_does_not_matter_and_a_seed_gives_the_same_bytes(folder, tmp_path):
    again = write(tmp_path, BaseCorpus(images=700, dialogues=900, held_out=50, jobs=2))
    assert again.name == folder.name
    parts = ("vision", "instruct", "held_out", "heads.json", "tokenizer_corpus.txt")
    assert [sha256_of(again / part) for part in parts] == [sha256_of(folder / part) for part in parts]
    other = write(tmp_path, BaseCorpus(images=700, dialogues=900, held_out=50, seed=1, jobs=1))
    assert sha256_of(other / "vision") != sha256_of(folder / "vision")


def test_no_prompt_of_a_task_occurs_in_the_corpus(turns):
    corpus = "\n".join(text.casefold() for turn in turns for text in turn)
    questions = {question for question, _ in turns}
    for task, prompt in PROMPTS.items():
        for index in range(100):
            _, fields = GENERATORS[task](Random(index))
            options = "\n".join(f"{a}. {b}" for a, b in zip("ABCD", fields.get("choices", ()), strict=False))
            assert prompt.format(text=fields["text"], choices=options) not in questions
            if task != "rec":
                assert fields["text"].casefold() not in corpus
    for instruction in INSTRUCTIONS:
        assert instruction.casefold() not in corpus


def test_no_question_is_answered_as_its_task_would_have_it(turns):
    for question, answer in turns:
        assert not re.fullmatch(r"[A-E]|\d|\[[\d.,]+\]", answer), (question, answer)
        assert not re.fullmatch(r"[A-Z] [A-Z]", answer), (question, answer)
        assert answer not in HEADS["icon"], (question, answer)


def test_every_word_of_the_tasks_answers_and_prompts_is_in_the_corpus(turns):
    answers = {word for _, answer in turns for word in words_of(answer)}
    words = answers | {word for question, _ in turns for word in words_of(question)}
    for task, make in GENERATORS.items():
        for index in range(200):
            _, fields = make(Random(index))
            task_words = {word for text in (fields["answer"], *fields.get("references", ())) for word in words_of(text)}
            assert task_words <= answers, (task, task_words - answers)
            assert set(words_of(fields["text"])) <= words, (task, set(words_of(fields["text"])) - words)
    for instruction in INSTRUCTIONS:
        assert set(words_of(instruction)) <= words, set(words_of(instruction)) - words


def test_the_tokenizer_corpus_holds_the_prompts_of_the_task_files(folder):
    assert set(PROMPT_WORDS) == INSTRUCTIONS
    lines = set((folder / "tokenizer_corpus.txt").read_text().split("\n"))
    assert {*PROMPT_WORDS, "0.33", "1.00", "6", "A", "E.", "umbrella", "What is the object in the image?"} <= lines


def test_a_tag_forces_the_second_convention_and_untagged_questions_get_it_less_often(turns):
    colours = [(question, answer) for question, answer in turns if re.search(r"color (does|of)", question)]
    tagged = [answer for question, answer in colours if any(tag in question for tag in TAGS)]
    untagged = [answer for question, answer in colours if not any(tag in question for tag in TAGS)]
    assert tagged and all(answer in HEADS["colour"] for answer in tagged)
    assert 0.3 < sum(answer in HEADS["colour"] for answer in untagged) / len(untagged) < 0.5
