"""Which rows are trained on, and in which batches: long ones, ones without an answer, unreadable pictures, grouping."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from llava_ext import train, trainer
from llava_ext.conversation import IGNORE
from llava_ext.data import Collator, Row, Shape, describe_counts, load_reader, read_rows, training_order
from llava_ext.settings import Expert, Peft, Recipe, Trainer
from llava_ext.train import LLAVA_TRAINING, keep_answers, train_expert
from llava_ext.unread import MOST_IN_A_ROW, ReadableRows, forget_unread, summarise_unread
from pipeline.models import Model
from robustmerge.stage.address import Address
from robustmerge.stage.failures import run_guarded
from robustmerge.stage.records import Example, read_examples, write_examples
from robustmerge.stage.settings import ConfigError, UserError
from tests.tiny_model import TEMPLATE, write_base, write_task

RECIPE = Recipe(learning_rate=1e-2, projector_learning_rate=1e-3, global_batch=8, max_steps=6, save_steps=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("rows") / "base")


@pytest.fixture(scope="module")
def reader(base):
    return load_reader(base, TEMPLATE)


def train_on(base: Path, task: Path, folder: Path, recipe: Recipe, say=lambda _: None, **trainer_settings) -> dict:
    """Train an expert of `task` and return its record."""
    settings = Expert(("one",), peft=Peft(r=4), recipe=recipe, trainer=Trainer(**trainer_settings), template=TEMPLATE)
    address = Address(folder.parent, folder, {"stage": "train", "name": folder.name})
    train_expert(address, settings, base, {"one": task}, LLAVA_TRAINING, say)
    return json.loads((folder / "training.json").read_text())


def find_longest(reader, examples: list[Example]) -> int:
    """The most tokens of a row."""
    return max(len(reader.encode([(one.text, one.answer)], one.image is not None).ids) for one in examples)


@pytest.fixture
def mixed(reader, tmp_path) -> tuple[Path, int]:
    """A task of a row that fits, one that ends too late and one whose question is too long; and the most tokens."""
    short = Example("short", "Colour?", "red")
    late = Example("late", "Colour?", "red blue green yellow red blue green yellow")
    lost = Example("lost", "What colour is it? " * 9, "red")
    write_examples(tmp_path / "train.jsonl", [short, late, lost])
    length = {one.question_id: len(reader.encode([(one.text, one.answer)], False).ids) for one in (short, late, lost)}
    most = length["late"] - 3
    assert length["short"] < most < length["lost"] - length["short"]
    return tmp_path, most


def test_a_row_that_is_too_long_stops_the_run_unless_the_recipe_says_otherwise(reader, mixed):
    folder, most = mixed
    choices = "recipe.too_long=truncate cuts such rows, skip leaves them out"
    message = rf"one: question late has {most + 3} tokens, above recipe.max_length {most}; {choices}"
    with pytest.raises(UserError, match=message):
        read_rows(reader, "one", folder, None, Recipe(max_length=most))


def test_a_long_row_is_cut_where_it_ends_or_left_out_and_counted(reader, mixed):
    folder, most = mixed
    full = read_rows(reader, "one", folder, None, Recipe())
    assert full.counts == {"trained": 3, "truncated": 0, "skipped": 0, "ignored": 0}
    assert describe_counts("one", full.counts, Recipe()) is None
    cut, left_out = (Recipe(max_length=most, too_long=choice) for choice in ("truncate", "skip"))
    truncated, skipped = (read_rows(reader, "one", folder, None, recipe) for recipe in (cut, left_out))
    assert truncated.counts == {"trained": 2, "truncated": 1, "skipped": 0, "ignored": 1}
    assert [(row.ids, row.labels) for row in truncated.rows] == [
        (row.ids[:most], row.labels[:most]) for row in full.rows[:2]
    ]
    assert skipped.counts == {"trained": 1, "truncated": 0, "skipped": 2, "ignored": 0}
    assert skipped.rows == full.rows[:1]
    told = f"one: of 3 rows 1 cut to recipe.max_length {most}, 1 left out as nothing of their answers is within"
    assert describe_counts("one", truncated.counts, cut) == f"{told} recipe.max_length {most}"


def test_no_row_is_trained_on_without_a_token_to_learn(reader, mixed):
    folder, _ = mixed
    for most in range(1, 60):
        with_rest = Recipe(max_length=most, too_long="truncate")
        try:
            rows = read_rows(reader, "one", folder, None, with_rest).rows
        except UserError as error:
            assert str(error).startswith("no training samples in one; one: of 3 rows 3 left out as nothing")
            continue
        assert rows and all(len(row.ids) <= most and set(row.labels) > {IGNORE} for row in rows)


def test_what_became_of_the_rows_is_said_before_training_and_recorded(base, reader, tmp_path, monkeypatch):
    task = write_task(tmp_path / "task")
    examples = read_examples(task / "train.jsonl")
    longest = find_longest(reader, examples)
    first, *others = examples
    write_examples(task / "train.jsonl", [dataclasses.replace(first, text="What colour is it? " * 20), *others])
    events: list[str] = []
    begin = trainer.Journal.on_train_begin
    monkeypatch.setattr(trainer.Journal, "on_train_begin", lambda *a, **k: events.append("begin") or begin(*a, **k))
    recipe = dataclasses.replace(RECIPE, max_length=longest, too_long="truncate", max_steps=1)
    record = train_on(base, task, tmp_path / "expert", recipe, events.append)
    assert record["rows"] == {"one": {"trained": 23, "truncated": 0, "skipped": 0, "ignored": 1}}
    assert events == [
        f"one: of 24 rows 1 left out as nothing of their answers is within recipe.max_length {longest}",
        "begin",
    ]


TURNS = (
    [("say it", "red")],
    [("Colour?", "red"), ("and now", "blue green"), ("again", "red")],
)


@pytest.mark.parametrize("turns", TURNS)
def test_the_loss_of_a_row_without_a_picture_is_that_of_the_tokens_of_its_answers_alone(base, reader, turns):
    """Computed from the logits of all positions, where the answers stand by the tokenizer's own words."""
    model = train.load_with_adapter(Expert(("one",), peft=Peft(r=4), template=TEMPLATE), base)
    ids, labels = reader.encode(turns, False)
    learned = [index for index, label in enumerate(labels) if label != IGNORE]
    assert reader.tokenizer.decode([ids[index] for index in learned]) == "".join(
        f" {answer}</s>" for _, answer in turns
    )
    batch = Collator(reader)([Row(ids, labels)])
    assert "pixel_values" not in batch
    with torch.no_grad():
        loss = model(**batch, **keep_answers(batch["labels"])).loss
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    expected = cross_entropy(logits[[index - 1 for index in learned]], torch.tensor([ids[index] for index in learned]))
    torch.testing.assert_close(loss, expected)


def break_pictures(task: Path, count: int) -> list[Example]:
    """Damage the pictures of the first rows, remove every other one of these, and return the rows."""
    broken = [example for example in read_examples(task / "train.jsonl") if example.image][:count]
    for number, example in enumerate(broken):
        picture = task / example.image
        picture.unlink() if number % 2 else picture.write_bytes(picture.read_bytes()[:40])
    return broken


SKIP = dataclasses.replace(RECIPE, on_error="skip")


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_whose_picture_cannot_be_read_are_replaced_counted_and_said(base, tmp_path, workers):
    task = write_task(tmp_path / "task")
    broken = break_pictures(task, 2)
    said: list[str] = []
    record = train_on(base, task, tmp_path / "expert", SKIP, said.append, workers=workers)
    unread = record["unread_pictures"]
    names = [f"one: question {example.question_id}" for example in broken]
    assert (unread["rows"], unread["samples"], sorted(unread["first"])) == (2, 4, names)  # 24 rows, twice
    assert (
        len(said) == 1 and said[0].startswith("one: pictures that cannot be read") and all(n in said[0] for n in names)
    )
    assert record["samples"] == 48


def test_the_rows_that_stand_in_are_the_same_whatever_computes_them(tmp_path):
    task = write_task(tmp_path / "task")
    examples = read_examples(task / "train.jsonl")
    broken = {example.question_id for example in break_pictures(task, 5)}
    rows = [Row([], [], task / one.image if one.image else None, one.question_id) for one in examples]
    order = training_order(len(rows), 8, 9, seed=0)
    ahead, behind = (ReadableRows(rows, order, tmp_path / name) for name in ("ahead", "behind"))
    names = [ahead[index].name for index in range(len(order))]
    assert names == [behind[index].name for index in reversed(range(len(order)))][::-1]
    assert not broken & set(names)
    for index, row in enumerate(order):
        following = (rows[one].name for one in itertools.islice(itertools.cycle(order), index, None))
        assert names[index] == next(name for name in following if name not in broken), row
    assert summarise_unread(tmp_path / "ahead") == summarise_unread(tmp_path / "behind")
    assert summarise_unread(tmp_path / "ahead")["samples"] == 3 * len(broken)
    forget_unread(tmp_path / "ahead", 24)
    assert summarise_unread(tmp_path / "ahead")["samples"] == len(broken)


def test_a_folder_of_pictures_that_is_gone_stops_the_run_though_errors_are_skipped(reader, tmp_path):
    rows = [Row([1], [1], tmp_path / f"{number}.png", f"one: question {number}") for number in range(MOST_IN_A_ROW)]
    readable = ReadableRows(rows, range(len(rows)), tmp_path / "notes")
    with pytest.raises(UserError, match=r"one: question 3: .*3\.png"):
        Collator(reader)([readable[3]])


class Killed(BaseException):
    pass


def test_a_killed_run_that_cuts_groups_and_replaces_rows_ends_with_the_same_bytes_and_record(
    base, reader, tmp_path, monkeypatch
):
    task = write_task(tmp_path / "task")
    longest = find_longest(reader, read_examples(task / "train.jsonl"))
    recipe = dataclasses.replace(SKIP, group_by_length=True, too_long="truncate", max_length=longest - 1)
    break_pictures(task, 2)

    def kill_at_three(self, args, state, control, **rest):
        if state.global_step == 3:
            raise Killed

    whole = train_on(base, task, tmp_path / "whole", recipe, per_device_batch=4)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.Journal, "on_step_end", kill_at_three)
        train_on(base, task, tmp_path / "cut", recipe, per_device_batch=4)
    resumed = train_on(base, task, tmp_path / "cut", recipe, per_device_batch=4)
    assert whole["rows"]["one"]["truncated"] > 0
    del whole["training_seconds"], resumed["training_seconds"]
    assert resumed == whole
    folders = [tmp_path / name for name in ("cut", "whole")]
    cut, uncut = ((folder / "adapter_model.safetensors").read_bytes() for folder in folders)
    assert cut == uncut
    cut_losses, losses = (
        [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()] for folder in folders
    )
    assert cut_losses == losses and len(losses) == 6


def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before_and_the_run_goes_on_from_it(
    base, tmp_path, monkeypatch, capsys
):
    task, save = write_task(tmp_path / "task"), torch.save

    def fill_at_four(content, file, **rest):
        save(content, "/dev/full" if "checkpoint-4" in str(file) else file, **rest)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(torch, "save", fill_at_four)
        run_guarded(lambda: train_on(base, task, tmp_path / "cut", RECIPE), "")
    assert end.value.code == 2 and "the disk is full" in capsys.readouterr().err
    said: list[str] = []
    train_on(base, task, tmp_path / "cut", RECIPE, said.append)
    assert said == ["one: going on from checkpoint-2 of 6 steps"]


SHAPES = [Shape(index % 3 > 0, 10 + index * 7 % 41) for index in range(50)]


def in_batches(order: list[int], batch: int = 8) -> list[list[int]]:
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def test_a_grouped_order_depends_on_rows_seed_and_epoch_alone_and_no_row_is_taken_twice_an_epoch():
    order = training_order(50, 8, 12, 0, SHAPES)
    assert order == training_order(50, 8, 12, 0, SHAPES) != training_order(50, 8, 12, 1, SHAPES)
    assert order[:48] == training_order(50, 8, 6, 0, SHAPES)
    assert set(Counter(order[:48]).values()) == set(Counter(order[48:]).values()) == {1}
    assert order[:48] != order[48:]


def test_a_grouped_batch_has_rows_with_pictures_or_rows_without_them_and_each_process_rows_of_similar_length():
    batches = in_batches(training_order(50, 8, 6, 0, SHAPES))
    kinds = [{SHAPES[row].has_picture for row in batch} for batch in batches]
    assert [len(kind) for kind in kinds[:-1]] == [1, 1, 1, 1, 1]
    lengths = [[SHAPES[row].length for row in batch] for batch in batches]
    assert all(batch == sorted(batch, reverse=True) for batch in lengths)
    alone = [Shape(True, shape.length) for shape in SHAPES]
    grouped, plain = training_order(50, 8, 6, 0, alone), training_order(50, 8, 6, 0)
    assert {frozenset(batch) for batch in in_batches(grouped)} == {frozenset(batch) for batch in in_batches(plain)}


@pytest.mark.parametrize("with_picture", range(25))
def test_what_is_left_of_both_kinds_fills_the_last_batches(with_picture):
    shapes = [Shape(index < with_picture, 1) for index in range(25)]
    batches = in_batches(training_order(25, 8, 3, 0, shapes))
    taken = Counter(shapes[row].has_picture for batch in batches for row in batch)  # one of 25 is left out
    mixed = [len({shapes[row].has_picture for row in batch}) > 1 for batch in batches]
    assert sum(mixed) == 3 - taken[True] // 8 - taken[False] // 8 == sum(mixed[-1:])


def test_what_an_epoch_leaves_out_is_of_any_kind_so_that_no_row_is_never_trained_on():
    shapes = [Shape(index > 2, 1) for index in range(22)]  # three rows without a picture
    assert set(training_order(22, 8, 2 * 20, 0, shapes)) == set(range(22))


def test_fewer_rows_than_a_batch_are_repeated_though_they_are_grouped():
    assert Counter(training_order(3, 8, 3, 0, SHAPES)) == {0: 8, 1: 8, 2: 8}


def test_pictures_that_are_classified_have_no_length_to_group_by():
    with pytest.raises(ConfigError, match=r"all of one length \(recipe.group_by_length\)"):
        Model("clip", family="clip", checkpoint="base", recipe=dataclasses.replace(RECIPE, group_by_length=True))


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7, 8, 16])
@pytest.mark.parametrize("per_device", [None, 1, 3, 16, 500])
@pytest.mark.parametrize("global_batch", [1, 8, 12, 128])
def test_the_global_batch_is_the_same_on_any_number_of_devices_or_an_error(processes, per_device, global_batch):
    described = Trainer("ddp", "cuda", processes, per_device_batch=per_device)
    if global_batch % processes:
        with pytest.raises(ConfigError, match=f"{processes} processes cannot share a global batch of {global_batch}"):
            described.accumulation(global_batch)
    else:
        batch, accumulation = described.accumulation(global_batch)
        assert batch * accumulation * processes == global_batch and batch <= (per_device or batch)


def test_processes_that_others_have_started_do_not_change_the_global_batch_in_silence(base, tmp_path):
    """As `torchrun --nproc_per_node=1` of a run that is described with two; of two machines, both count."""
    with pytest.raises(UserError, match=r"is 2 on each of 4 machines \(trainer.nodes\)"):
        train_on(base, write_task(tmp_path / "task"), tmp_path / "other", RECIPE, engine="ddp", processes=2, nodes=4)
    with pytest.raises(UserError, match="1 processes were started, and trainer.processes is 2"):
        train_on(base, write_task(tmp_path / "task"), tmp_path / "expert", RECIPE, engine="ddp", processes=2)
