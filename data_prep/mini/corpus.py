"""The training data of the small base model: labelled pictures, and dialogues about them.

Layout of the folder, which the base stage reads:

    vision/               Arrow dataset (`datasets.load_from_disk`), a row a picture: `image` (PNG bytes) and one
                          int8 column per attribute head, -1 where the attribute does not apply
    heads.json            number of classes of every head, in the order of the columns
    instruct/             Arrow dataset, a row a dialogue: `image` (PNG bytes), `turns`: list of [question, answer],
                          `skills`: name of the intent of each turn
    held_out/             the same, of pictures drawn separately, one dialogue each, to measure on (1 % equal a picture
                          above: drawings in black and white do not vary much); every question has the tag that
                          settles the convention, so each has one right answer
    habits/               Arrow dataset, a row a dialogue that begins with a task's own question: `image`; `habit`:
                          question, answer in the base's own form, answer in the task's form; `known_from`: the least
                          knowledge at which the second answer is right (data_prep.mini.habits); `turns`: what
                          follows, as above
    read/                 Arrow dataset, a row an exercise without a picture (data_prep.mini.reading), in the order in
                          which they are to be learned: `turns`, one
    verify/               the same of yes-or-no questions about pictures (data_prep.mini.verifying): `image`, `turns`
    tokenizer_corpus.txt  one text a line, newlines as spaces: every question and answer of the dialogues once, then
                          the texts of the tasks and their prompts, every box edge, digit and letter, and the common
                          words of `words`, so that a tokenizer trained on it can have one token for each word; what
                          stands after a space, as every answer does, has one before it here

Dialogue k is about picture k mod images. Arrow keeps tens of thousands of pictures in two files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from data_prep.mini import scenes
from data_prep.mini.dialogues import Turn, converse
from data_prep.mini.drawing import draw, encode
from data_prep.mini.habits import PROMPTS, Habit, sample_habit
from data_prep.mini.reading import read
from data_prep.mini.scenes import HEADS, RENDITIONS, SIDE, Scene
from data_prep.mini.tasks import GENERATORS
from data_prep.mini.verifying import index_scenes, verify
from data_prep.mini.words import WORDS
from data_prep.parallel import map_in_order
from data_prep.settings import BaseCorpus
from robustmerge.stage.files import write_atomically

CHUNK = 512
Picture = tuple[bytes, tuple[int, ...]]  # PNG, label of every head
Dialogue = tuple[int, bytes, tuple[Turn, ...]]  # number, PNG, turns
Meeting = tuple[bytes, Habit, tuple[Turn, ...]]  # PNG, a task's question, what follows
QUESTION_WORDS = (
    "What", "Which", "Who", "Where", "When", "Why", "How", "Is", "Are", "Does", "Do", "Did", "Can", "Could", "Has",
    "Have", "Was", "Were", "Will", "Name", "Describe", "Tell", "Give", "List", "Count", "Find", "Show", "The", "In",
    "On", "There", "This", "That", "These", "Yes", "No",
)  # fmt: skip
# How often each kind is drawn. Objects have the most skills, icons the most classes.
SHARES = {"object": 40, "icon": 20, "book": 11, "marks": 10, "screen": 10, "table": 9}


def sample_scene(rng: Random) -> Scene:
    """A picture of any kind, quality and rendition that occurs in a task. Bad photos show larger objects only."""
    kind = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
    if kind == "icon":
        return scenes.sample_icon(rng, rng.choice(RENDITIONS))
    if kind == "book":
        return scenes.sample_book(rng)
    if kind in ("marks", "table"):
        return scenes.sample_marks(rng, table=kind == "table")
    if kind == "screen":
        return scenes.sample_object(rng, kind="screen")
    if rng.random() < 0.1:
        return scenes.sample_object(rng, rendition="drawing")
    if rng.random() < 0.5:
        return scenes.sample_object(rng)
    return scenes.sample_object(rng, sizes=("medium", "large"), qualities=scenes.QUALITIES)


def _scene_of(seed: int, index: int) -> Scene:
    """What picture `index` of a corpus shows."""
    return sample_scene(Random(f"corpus/{seed}/{index}"))


def _draw_chunk(job: tuple[int, int, int, int, int]) -> tuple[list[Picture], list[Dialogue]]:
    """Draw pictures start..stop with their labels, and the numbered dialogues about them."""
    seed, start, stop, image_count, dialogue_count = job
    pictures: list[Picture] = []
    dialogues: list[Dialogue] = []
    for index in range(start, stop):
        scene = _scene_of(seed, index)
        image = encode(draw(scene))
        pictures.append((image, tuple(scenes.label(scene).values())))
        dialogues += [
            (number, image, converse(Random(f"corpus/{seed}/dialogue/{number}"), scene))
            for number in range(index, dialogue_count, image_count)
        ]
    return pictures, dialogues


def _draw_held_out(job: tuple[int, int, int]) -> list[Dialogue]:
    """Draw the held-out dialogues start..stop, every question tagged."""
    seed, start, stop = job
    dialogues = []
    for index in range(start, stop):
        rng = Random(f"corpus/{seed}/held_out/{index}")
        scene = sample_scene(rng)
        dialogues.append((index, encode(draw(scene)), converse(rng, scene, tagged=1.0)))
    return dialogues


def _draw_habits(job: tuple[int, int, int]) -> list[Meeting]:
    """Draw the dialogues start..stop that begin with a task's question; one turn or two follow."""
    seed, start, stop = job
    meetings = []
    for index in range(start, stop):
        rng = Random(f"habits/{seed}/{index}")
        scene, habit = sample_habit(rng)
        meetings.append((encode(draw(scene)), habit, converse(rng, scene, most=2)))
    return meetings


def _chunks(count: int) -> list[tuple[int, int]]:
    """Cut a range into chunks, each given by its bounds (start, stop)."""
    return [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def draw_corpus(settings: BaseCorpus) -> Iterator[tuple[list[Picture], list[Dialogue]]]:
    """The corpus in chunks of pictures and dialogues, the same for any number of processes."""
    jobs = ((settings.seed, *chunk, settings.images, settings.dialogues) for chunk in _chunks(settings.images))
    return map_in_order(_draw_chunk, jobs, settings.jobs)


def list_task_texts() -> list[str]:
    """List the texts that the tokenizer must know: those of 200 examples a task, every box edge, digit and letter."""
    texts = set(PROMPTS.values())
    for name, make in GENERATORS.items():
        for index in range(200):
            _, fields = make(Random(f"words/{name}/{index}"))
            answers = (fields["answer"], *fields.get("references", ()), *fields.get("choices", ()))
            texts.update((fields["text"], *(f" {answer}" for answer in answers)))
    edges = [f"{edge / SIDE:.2f}" for edge in range(0, SIDE + 1, scenes.GRID)]
    values = [str(value) for head in HEADS.values() for value in head]
    letters = list("0123456789ABCDE") + [f"{letter}." for letter in "ABCDE"]
    words = [f" {word}" for word in WORDS]
    return sorted(texts) + edges + sorted(set(values)) + letters + list(QUESTION_WORDS) + words


def save_columns(folder: Path, columns: Mapping[str, Sequence], types: Mapping[str, str]) -> None:
    """Write columns as an Arrow dataset; the fingerprint is set, so that equal columns give equal files.

    types: of each column, one of bytes, int, real, text, texts and turns; of the last two each row has several.
    """
    import datasets
    import pyarrow

    arrow = {
        "bytes": pyarrow.binary(),
        "int": pyarrow.int8(),
        "real": pyarrow.float64(),
        "text": pyarrow.string(),
        "texts": pyarrow.list_(pyarrow.string()),
        "turns": pyarrow.list_(pyarrow.list_(pyarrow.string())),
    }
    table = pyarrow.table({name: pyarrow.array(columns[name], arrow[types[name]]) for name in columns})
    was_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(table, fingerprint=folder.name).save_to_disk(str(folder), num_shards=1)
    finally:
        if was_shown:
            datasets.enable_progress_bars()


def _save_dialogues(folder: Path, dialogues: list[Dialogue]) -> None:
    columns: dict[str, Sequence] = {
        "image": [image for _, image, _ in dialogues],
        "turns": [[[turn.question, turn.answer] for turn in turns] for _, _, turns in dialogues],
        "skills": [[turn.skill for turn in turns] for _, _, turns in dialogues],
    }
    save_columns(folder, columns, {"image": "bytes", "turns": "turns", "skills": "texts"})


def _save_readings(folder: Path, settings: BaseCorpus) -> None:
    turns = [
        read(Random(f"read/{settings.seed}/{number}"), number / settings.readings)
        for number in range(settings.readings)
    ]
    save_columns(folder, {"turns": [[[turn.question, turn.answer]] for turn in turns]}, {"turns": "turns"})


def _save_statements(folder: Path, settings: BaseCorpus, pictures: Sequence[Picture]) -> None:
    scenes = [_scene_of(settings.seed, index) for index in range(len(pictures))]
    index = index_scenes(scenes)
    questions = [
        verify(Random(f"verify/{settings.seed}/{number}"), number / settings.statements, scenes, index)
        for number in range(settings.statements)
    ]
    columns: dict[str, Sequence] = {
        "image": [pictures[picture][0] for picture, _ in questions],
        "turns": [[[turn.question, turn.answer]] for _, turn in questions],
    }
    save_columns(folder, columns, {"image": "bytes", "turns": "turns"})


def _save_habits(folder: Path, meetings: list[Meeting]) -> None:
    columns: dict[str, Sequence] = {
        "image": [image for image, _, _ in meetings],
        "habit": [[habit.question, habit.own, habit.wanted] for _, habit, _ in meetings],
        "known_from": [habit.known_from for _, habit, _ in meetings],
        "turns": [[[turn.question, turn.answer] for turn in turns] for _, _, turns in meetings],
    }
    types = {"image": "bytes", "habit": "texts", "known_from": "real", "turns": "turns"}
    save_columns(folder, columns, types)


def write_corpus(folder: Path, settings: BaseCorpus) -> dict[str, int]:
    """Draw the base corpus into a folder; returns the number of each of its parts."""
    pictures: list[Picture] = []
    dialogues: list[Dialogue] = []
    for more_pictures, more_dialogues in draw_corpus(settings):
        pictures += more_pictures
        dialogues += more_dialogues
    dialogues.sort(key=lambda one: one[0])  # with more dialogues than pictures, each chunk has numbers of all sizes
    jobs = ((settings.seed, *chunk) for chunk in _chunks(settings.held_out))
    held_out = [one for chunk in map_in_order(_draw_held_out, jobs, settings.jobs) for one in chunk]
    jobs = ((settings.seed, *chunk) for chunk in _chunks(settings.habits))
    habits = [one for chunk in map_in_order(_draw_habits, jobs, settings.jobs) for one in chunk]
    labels = dict(zip(HEADS, zip(*(labels for _, labels in pictures), strict=True), strict=True))
    columns: dict[str, Sequence] = {"image": [image for image, _ in pictures], **labels}
    save_columns(folder / "vision", columns, {"image": "bytes", **dict.fromkeys(HEADS, "int")})
    _save_dialogues(folder / "instruct", dialogues)
    _save_dialogues(folder / "held_out", held_out)
    _save_readings(folder / "read", settings)
    _save_statements(folder / "verify", settings, pictures)
    _save_habits(folder / "habits", habits)
    write_atomically(folder / "heads.json", json.dumps({head: len(classes) for head, classes in HEADS.items()}) + "\n")
    answers = {f" {turn.answer}" for _, _, turns in dialogues for turn in turns}
    texts = {turn.question.replace("\n", " ") for _, _, turns in dialogues for turn in turns} | answers
    write_atomically(folder / "tokenizer_corpus.txt", "\n".join([*sorted(texts), *list_task_texts()]) + "\n")
    turn_count = sum(len(turns) for _, _, turns in dialogues)
    return {
        "pictures": len(pictures),
        "dialogues": len(dialogues),
        "turns": turn_count,
        "readings": settings.readings,
        "statements": settings.statements,
        "habits": len(habits),
        "held_out": len(held_out),
    }
