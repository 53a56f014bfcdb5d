"""The corpus of the small base model: layout, labels, conventions, and that it gives no task away.

Needs `datasets` (reads and writes in tmp_path only).
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import yaml
from PIL import Image

from data_prep.mini import habits
from data_prep.mini.corpus import sample_scene
from data_prep.mini.dialogues import TAGS, Turn, converse
from data_prep.mini.reading import read, read_words
from data_prep.mini.scenes import HEADS, Scene
from data_prep.mini.tasks import GENERATORS
from data_prep.mini.verifying import index_scenes, verify
from data_prep.prepare import prepare_corpus
from data_prep.settings import BaseCorpus
from eval.parse import PARSERS
from robustmerge.stage.address import REPOSITORY, address_folder
from robustmerge.stage.files import sha256_of

PROMPTS = {
    file.stem: yaml.safe_load(file.read_text())["prompt"]
    for file in sorted((REPOSITORY / "configs/task/mini").glob("*.yaml"))
}
INSTRUCTIONS = {re.sub(r"\s*\{\w+\}\s*", "", prompt) for prompt in PROMPTS.values()}


SETTINGS = BaseCorpus(images=700, readings=80, statements=90, dialogues=900, habits=60, held_out=50, jobs=1)


def write(root: Path, settings: BaseCorpus) -> Path:
    return prepare_corpus(address_folder(root, "data", "base", "corpus", 1, settings, {}), settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("runs"), SETTINGS)


@pytest.fixture(scope="module")
def dialogue_turns() -> list[Turn]:
    """All turns of 8000 dialogues, as the corpus draws them but without pictures."""
    rngs = [Random(number) for number in range(8000)]
    return [turn for rng in rngs for turn in converse(rng, sample_scene(rng))]


@pytest.fixture(scope="module")
def turns(dialogue_turns: list[Turn]) -> list[tuple[str, str]]:
    """Question and answer of the turns that ask about a picture; in the others, words are repeated."""
    return [(turn.question, turn.answer) for turn in dialogue_turns if turn.skill != "repeat"]


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
        assert all(1 <= len(turns) <= 5 and all(len(turn) == 2 for turn in turns) for turns in dialogues["turns"])
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
    again = write(tmp_path, replace(SETTINGS, jobs=2))
    assert again.name == folder.name
    parts = ("vision", "instruct", "held_out", "read", "verify", "habits", "heads.json", "tokenizer_corpus.txt")
    assert [sha256_of(again / part) for part in parts] == [sha256_of(folder / part) for part in parts]
    other = write(tmp_path, replace(SETTINGS, seed=1))
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


def test_no_question_is_answered_as_its_task_would_have_it(dialogue_turns):
    for question, answer, skill in dialogue_turns:
        if skill in ("repeat", "options"):
            continue
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


def test_the_tokenizer_corpus_holds_the_words_of_the_task_files_and_common_ones(folder):
    lines = set((folder / "tokenizer_corpus.txt").read_text().split("\n"))
    assert {"0.33", "1.00", "6", "A", "E.", "umbrella", "What is the object in the image?", " yes", " dog"} <= lines


def test_yes_and_no_are_said_equally_often_and_truly(dialogue_turns):
    answers = [turn.answer for turn in dialogue_turns if turn.skill == "yes_no"]
    assert 0.47 < sum(answer.startswith("yes") for answer in answers) / len(answers) < 0.53
    colours = [t for t in dialogue_turns if t.skill == "yes_no" and re.search(r"no, it is (\w+)$", t.answer)]
    assert colours and all(t.answer.rsplit(" ", 1)[1] not in words_of(t.question) for t in colours)


def test_an_option_that_is_answered_by_its_text_stands_at_any_place(dialogue_turns):
    places = []
    for question, answer, skill in dialogue_turns:
        if skill == "options":
            options = re.findall(r"^[A-D]\. (.*)$", question, re.MULTILINE)
            places += [options.index(answer.removeprefix("I choose "))] if len(options) == 4 else []
    assert all(0.2 < places.count(place) / len(places) < 0.3 for place in range(4))


def test_an_exercise_can_be_solved_from_its_text_alone():
    turns = [read(Random(number), number / 2000) for number in range(2000)]
    facts = [turn for turn in turns if turn.skill == "read_fact"]
    assert 0.45 < sum(turn.answer == "yes" for turn in facts) / len(facts) < 0.55
    assert all(turn.answer in turn.question for turn in turns if turn.skill == "read_words")


@pytest.fixture(scope="module")
def verified() -> list[tuple[Scene, Turn]]:
    """8000 yes-or-no questions in their order, each with what its picture shows."""
    scenes = [sample_scene(Random(number)) for number in range(3000)]
    index = index_scenes(scenes)
    drawn = [verify(Random(number), number / 8000, scenes, index) for number in range(8000)]
    return [(scenes[picture], turn) for picture, turn in drawn]


def test_a_question_of_the_drill_is_answered_yes_half_of_the_time_and_only_where_it_is_true(verified):
    questions = [(scene, turn) for scene, turn in verified if turn.skill == "yes_no"]
    assert 0.47 < sum(turn.answer == "yes" for _, turn in questions) / len(questions) < 0.53
    colours = [(s, t) for s, t in questions if s.colour and set(words_of(t.question)) & set(HEADS["colour"])]
    assert colours and all((s.colour in words_of(t.question)) == (t.answer == "yes") for s, t in colours)


def test_the_drill_begins_with_one_value_of_a_concept_and_ends_with_all_of_them_alike(verified):
    def icons(part: list[tuple[Scene, Turn]]) -> list[str]:
        asked = [turn.question for scene, turn in part if scene.icon and turn.skill == "yes_no"]
        return [icon for question in asked for icon in HEADS["icon"] if icon in words_of(question)]

    assert len(set(icons(verified[:300]))) == 1
    last = icons(verified[6000:])
    assert all(last.count(icon) > 0.4 * len(last) / len(HEADS["icon"]) for icon in HEADS["icon"])


def test_words_to_be_repeated_follow_zipf_at_first_and_are_equally_frequent_at_last():
    def most_frequent_share(progress: float) -> float:
        rng = Random(0)
        words = [word for _ in range(600) for word in read_words(rng, progress)[1].split()]
        return max(map(words.count, words)) / len(words)

    assert most_frequent_share(0) > 5 * most_frequent_share(1)


def test_the_questions_of_the_tasks_are_asked_in_the_prompts_of_their_files():
    assert {task: PROMPTS[task] for task in habits.PROMPTS} == habits.PROMPTS


def test_the_shares_that_the_base_knows_are_the_papers_ratios_of_zero_shot_to_individual_or_multi_task():
    table = yaml.safe_load((REPOSITORY / "results/paper.yaml").read_text())["table_2_mm_mergebench"]
    rows = table["rows"]
    for split, best in (("seen", "individual"), ("unseen", "multi_task")):
        for task, zero_shot, trained in zip(table[split], rows["zero_shot"][split], rows[best][split], strict=True):
            assert habits.SHARES[task] == zero_shot / trained, task


@pytest.fixture(scope="module")
def met() -> list[habits.Habit]:
    return [habits.sample_habit(Random(number))[1] for number in range(6000)]


def test_a_task_is_known_as_far_as_its_ratio_says_at_every_knowledge(met):
    for task, share in habits.SHARES.items():
        ranks = [habit.known_from for habit in met if habit.task == task]
        for knowledge in (0.5, 1):
            assert sum(rank <= knowledge for rank in ranks) / len(ranks) == pytest.approx(knowledge * share, abs=0.12)
        assert min(ranks) > 0  # nothing is known at 0


def test_what_the_base_says_in_its_own_form_never_counts(met):
    """But a caption of its own shares words with the wanted one."""
    files = {file.stem: yaml.safe_load(file.read_text()) for file in (REPOSITORY / "configs/task/mini").glob("*.yaml")}
    for habit in met:
        task = files[habit.task]
        if task["metric"] == "ngram_f1":
            continue
        choices = re.findall(r"^[A-D]\. (.*)$", habit.question, re.MULTILINE)
        assert PARSERS[task["parse"]](habit.own, choices) != PARSERS[task["parse"]](habit.wanted, choices), habit


def test_a_tag_forces_the_second_convention_and_untagged_questions_get_it_less_often(turns):
    colours = [(question, answer) for question, answer in turns if re.search(r"color (does|of)", question)]
    tagged = [answer for question, answer in colours if any(tag in question for tag in TAGS)]
    untagged = [answer for question, answer in colours if not any(tag in question for tag in TAGS)]
    assert tagged and all(answer in HEADS["colour"] for answer in tagged)
    assert 0.3 < sum(answer in HEADS["colour"] for answer in untagged) / len(untagged) < 0.5
