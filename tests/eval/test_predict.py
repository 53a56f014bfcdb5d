"""The predict stage with a made-up model: batches, interruption and going on, questions that fail."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.predict import list_shards, plan_batches, predict, run_in_one_process
from eval.questions import read_questions
from eval.settings import Generation, Selection
from robustmerge.stage.address import address_file, address_foreign, run_stage
from robustmerge.stage.records import Example, read_predictions, write_examples
from robustmerge.stage.settings import UserError

SETTINGS = Generation("vqav2", "{text}\nAnswer.", "plain", max_new_tokens=4, batch_size=3)
N = 11


@pytest.fixture
def questions(tmp_path) -> Path:
    path = tmp_path / "data" / "test.jsonl"
    path.parent.mkdir()
    examples = [
        Example(f"q{i}", "word " * (7 * i % 5 + 1), "yes", image=f"{i}.png" if i % 4 else None) for i in range(N)
    ]
    write_examples(path, examples)
    return path


def address_in(folder: Path, questions: Path, settings: Generation = SETTINGS):
    return address_file(
        folder, folder / f"{settings.task}.jsonl", "predict", 1, settings, {"q": address_foreign(questions)}
    )


class Model:
    """Answers with the id and the arguments of the call; fails or is interrupted where a test wants it."""

    def __init__(self, interrupt_at: int | None = None, bad: tuple[str, ...] = (), error: Exception | None = None):
        self.calls: list[list[str]] = []
        self.prefetched: list[list[str]] = []
        self.interrupt_at, self.bad, self.error = interrupt_at, bad, error or RuntimeError("broken picture")

    def __call__(self, examples, image_root, max_new_tokens, image):
        assert image == SETTINGS.image
        if len(self.calls) == self.interrupt_at:
            raise KeyboardInterrupt
        self.calls.append([example.question_id for example in examples])
        if any(example.question_id in self.bad for example in examples):
            raise self.error
        return [f"{e.question_id} é\u2028 {image_root.name} {max_new_tokens} {e.text!r}" for e in examples]

    def prefetch(self, examples, image_root, image):
        self.prefetched.append([example.question_id for example in examples])


def run(folder: Path, questions: Path, model: Model, say=lambda line: None, runner=run_in_one_process) -> Path:
    address = address_in(folder, questions)
    return predict(address, SETTINGS, questions, model, say=say, progress=False, runner=runner)


class Threads:
    """A team whose processes are threads: the others run between the first one's `begin` and `meet`."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, address, work, say):
        first = Member(self, address.path, work)
        try:
            return run_stage(address, lambda path: work(path, first), say)
        finally:
            for thread in first.threads:  # none outlives the stage, as torchrun has it
                thread.join()


class Member:
    def __init__(self, team: Threads, path: Path, work, rank: int = 0):
        self.team, self.path, self.work, self.rank, self.size = team, path, work, rank, team.size
        self.problem, self.death, self.threads = "", None, []

    def begin(self) -> None:
        if self.rank:
            return
        self.others = [Member(self.team, self.path, self.work, rank) for rank in range(1, self.size)]
        self.threads = [threading.Thread(target=other.live) for other in self.others]
        for thread in self.threads:
            thread.start()

    def live(self) -> None:
        try:
            assert self.work(self.path, self) is None, "only the first process has a record to give"
        except KeyboardInterrupt as death:
            self.death = death

    def meet(self, problem: str = "") -> None:
        if self.rank:
            self.problem = problem
            return
        for thread in self.threads:
            thread.join()
        for other in self.others:
            if other.death or other.problem:
                raise other.death or UserError(other.problem)


def test_predictions_are_in_the_order_of_the_questions_and_hold_the_rendered_prompt(tmp_path, questions):
    predictions = read_predictions(run(tmp_path / "out", questions, Model()))
    assert [prediction.question_id for prediction in predictions] == [f"q{i}" for i in range(N)]
    assert predictions[0].text == "q0 é\u2028 data 4 'word\\nAnswer.'"


def test_a_model_sees_whole_fixed_batches_of_like_questions(tmp_path, questions):
    model = Model()
    run(tmp_path / "out", questions, model)
    assert [len(call) for call in model.calls] == [3, 3, 2, 3]
    assert model.calls[-1] == ["q0", "q8", "q4"]  # those without a picture, by length
    assert model.prefetched == [*model.calls[1:], []], "each batch is announced before the one in front of it is asked"


def test_batches_sort_by_length_and_keep_the_order_of_equals():
    examples = [Example(name, "x" * length, "") for name, length in (("a", 3), ("b", 1), ("c", 3), ("d", 1))]
    assert [[e.question_id for e in batch] for batch in plan_batches(examples, 3)] == [["b", "d", "a"], ["c"]]


@pytest.mark.parametrize("interrupt_at", [0, 1, 2, 3])
@pytest.mark.parametrize("cut", [0, 5, 200])
def test_an_interrupted_run_that_goes_on_gives_the_same_bytes(tmp_path, questions, interrupt_at, cut):
    whole = Model()
    expected = run(tmp_path / "whole", questions, whole).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", questions, Model(interrupt_at=interrupt_at))
    shard = address_in(tmp_path / "out", questions).path.with_suffix(".jsonl.part-0")
    shard.write_bytes(shard.read_bytes()[: -cut or None])

    resumed, messages = Model(), []
    path = run(tmp_path / "out", questions, resumed, messages.append)
    assert path.read_bytes() == expected
    assert all(call in whole.calls for call in resumed.calls), "a batch was not whole"
    assert len(resumed.calls) >= len(whole.calls) - interrupt_at
    if cut == 0 and interrupt_at:
        assert len(resumed.calls) == len(whole.calls) - interrupt_at
        assert "going on after" in messages[0]
    assert not list_shards(path)


@given(
    starts=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 60)), max_size=4),
    last=st.integers(1, 5),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_processes_and_any_kills_give_the_same_bytes(tmp_path_factory, questions, starts, last):
    folder = tmp_path_factory.mktemp("team")
    expected = run(folder / "whole", questions, Model()).read_bytes()
    for size, interrupt_at, cut in starts:
        with contextlib.suppress(KeyboardInterrupt):
            run(folder / "out", questions, Model(interrupt_at=interrupt_at), runner=Threads(size))
        for shard in list_shards(address_in(folder / "out", questions).path):
            shard.write_bytes(shard.read_bytes()[: -cut or None])
    path = run(folder / "out", questions, Model(), runner=Threads(last))
    assert path.read_bytes() == expected
    assert not list_shards(path)


def test_every_process_of_a_team_answers_whole_batches_of_its_own(tmp_path, questions):
    alone, model = Model(), Model()
    run(tmp_path / "alone", questions, alone)
    run(tmp_path / "team", questions, model, runner=Threads(3))
    assert sorted(model.calls) == sorted(alone.calls)


def test_what_another_process_cannot_do_is_the_first_ones_error(tmp_path, questions):
    class Short(Model):
        def __call__(self, examples, *rest, **more):
            return super().__call__(examples, *rest, **more)[: None if threading.current_thread() is main else -1]

    main = threading.current_thread()
    with pytest.raises(UserError, match="gave [12] answers to [23] questions"):
        run(tmp_path / "out", questions, Short(), runner=Threads(2))
    resumed = Model()
    run(tmp_path / "out", questions, resumed)
    assert len(resumed.calls) == 2, "what the first process has answered is kept"


@given(limit=st.integers(1, N + 3), more=st.integers(0, 5))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_limit_takes_the_same_questions_and_a_larger_one_more_of_them(questions, limit, more):
    def taken(count: int) -> list[str]:
        return [example.question_id for example in read_questions(questions, Selection(limit=count))]

    everything = [example.question_id for example in read_questions(questions)]
    assert len(taken(limit)) == min(limit, N)
    assert set(taken(limit)) <= set(taken(limit + more))
    assert taken(limit) == [name for name in everything if name in taken(limit)], "in the order of the file"


def test_a_selection_has_an_address_of_its_own_and_records_its_questions(tmp_path, questions):
    selected = dataclasses.replace(SETTINGS, only=Selection(ids=("q7", "q2")))
    address = address_in(tmp_path, questions, selected)
    assert address.path != address_in(tmp_path, questions).path
    path = predict(address, selected, questions, Model(), say=print, progress=False)
    assert [prediction.question_id for prediction in read_predictions(path)] == ["q2", "q7"]
    assert json.loads(address.manifest.read_text())["record"]["ids"] == ["q2", "q7"]


def test_an_unknown_id_is_refused_with_what_ids_look_like(questions):
    with pytest.raises(UserError, match=r"has no question q99 \(ids\); its ids are like q0, q1, q2"):
        read_questions(questions, Selection(ids=("q1", "q99")))


def test_a_run_killed_before_its_manifest_asks_nothing_again(tmp_path, questions):
    path = run(tmp_path / "out", questions, Model())
    expected = path.read_bytes()
    address = address_in(tmp_path / "out", questions)
    address.manifest.unlink()
    again = Model()
    assert run(tmp_path / "out", questions, again).read_bytes() == expected
    assert again.calls == [] and address.is_complete()


def test_a_complete_result_is_left_alone(tmp_path, questions):
    run(tmp_path / "out", questions, Model())
    again = Model()
    run(tmp_path / "out", questions, again)
    assert again.calls == []


def test_questions_that_fail_are_recorded_and_said_and_the_rest_of_their_batch_is_not_lost(tmp_path, questions):
    messages: list[str] = []
    path = run(tmp_path / "out", questions, Model(bad=("q5",)), messages.append)
    predictions = {prediction.question_id: prediction for prediction in read_predictions(path)}
    assert [name for name, one in predictions.items() if one.error] == ["q5"]
    assert predictions["q5"].text == "" and predictions["q5"].error == "RuntimeError: broken picture"
    assert "1 of 11 questions failed" in messages[-1] and "q5" in messages[-1]
    record = json.loads(address_in(tmp_path / "out", questions).manifest.read_text())["record"]
    assert (record["questions"], record["failed"], record["empty"]) == (11, 1, 0)


def test_a_picture_that_cannot_be_read_is_the_fault_of_its_question(tmp_path, questions):
    model = Model(bad=("q5",), error=FileNotFoundError(errno.ENOENT, "no such picture"))
    predictions = read_predictions(run(tmp_path / "out", questions, model))
    assert sum(1 for prediction in predictions if prediction.error) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        UserError("no such expert"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_no_question_is_to_blame_for_ends_the_run_and_loses_nothing(tmp_path, questions, error):
    expected = run(tmp_path / "whole", questions, Model()).read_bytes()
    with pytest.raises(type(error)):
        run(tmp_path / "out", questions, Model(bad=("q4",), error=error))
    resumed = Model()
    assert run(tmp_path / "out", questions, resumed).read_bytes() == expected
    assert len(resumed.calls) == 1


def test_a_run_in_which_every_question_fails_is_no_result(tmp_path, questions):
    model = Model(bad=tuple(f"q{i}" for i in range(N)))
    with pytest.raises(UserError, match="all 11 questions failed; the first with: RuntimeError: broken picture"):
        run(tmp_path / "out", questions, model)
    assert not address_in(tmp_path / "out", questions).is_complete()
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_file()]


def test_a_model_that_gives_too_few_answers_is_caught(tmp_path, questions):
    class Silent(Model):
        def __call__(self, examples, *rest, **more):
            return ["a", "b"]

    with pytest.raises(UserError, match="2 answers to 3 questions"):
        run(tmp_path, questions, Silent())
