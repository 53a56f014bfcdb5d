"""The predict stage: one source answers one question file. Runs resume, and processes share work, by whole batches."""

from __future__ import annotations

import errno
import glob
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from eval.questions import read_prompts
from eval.settings import Generation
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.progress import Bar
from robustmerge.stage.records import Example, Prediction, append_predictions, read_predictions, write_predictions
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import plain

# Errors that no single question causes: a full disk or a lost device. An unreadable picture is an OSError too, but has
# none of these numbers.
FATAL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
# A GPU without memory, or one that failed and fails every question from then on: classes of torch, by name.
FATAL_NAMES = frozenset(("AcceleratorError", "OutOfMemoryError"))


class AnswerModel(Protocol):
    """Interface of a model with one source's adapter; llava_ext.generate.Generator implements it."""

    def __call__(self, examples: Sequence[Example], image_root: Path, max_new_tokens: int, image: str) -> list[str]:
        """Answer every example. Its text is the whole prompt, its picture a path relative to `image_root`."""

    def prefetch(self, examples: Sequence[Example], image_root: Path, image: str) -> None:
        """Start to read the pictures of the batch that comes next. Changes no answer."""


class Team(Protocol):
    """Interface of processes that share a run; llava_ext.processes.Team implements it. rank, size: as in torchrun."""

    rank: int
    size: int

    def begin(self) -> None:
        """Called by the first process: let the others begin."""

    def meet(self, problem: str = "") -> None:
        """Wait for all processes, which report their problems here. Raises UserError for the first one reported."""


class SingleProcess:
    """A team of one process."""

    rank, size = 0, 1

    def begin(self) -> None:
        """No-op: no other process waits for this one."""

    def meet(self, problem: str = "") -> None:
        """No-op: one process has nobody to synchronise with."""


StageWork = Callable[[Path, Team], dict | None]
StageRunner = Callable[[Address, StageWork, Callable[[str], None]], Path]
AnswerBatch = Callable[[Sequence[Example]], list[str]]


def run_in_one_process(address: Address, work: StageWork, say: Callable[[str], None]) -> Path:
    """Run the stage in this process."""
    return run_stage(address, lambda path: work(path, SingleProcess()), say)


def predict(
    address: Address,
    settings: Generation,
    questions: Path,
    model: AnswerModel,
    say: Callable[[str], None] = print,
    progress: bool = True,
    runner: StageRunner = run_in_one_process,
) -> Path:
    """Write the predictions of one source, in the order of the question file, to `address`.

    The model only ever gets whole batches, which the questions and the batch size fix, so an interrupted run that goes
    on gives the same bytes as an uninterrupted one, with any number of processes. runner: runs the stage in several
    processes, which share the batches.

    After an ordinary exception in a batch its questions are asked one by one; those that fail again are recorded with
    the error. An exception that no question causes (`_is_fatal`) ends the run, which goes on when it is started again.

    Raises UserError if every question failed.
    """

    def work(path: Path, team: Team) -> dict | None:
        examples = read_prompts(questions, settings.prompt, settings.only)
        batches = plan_batches(examples, settings.batch_size)
        if team.rank == 0:
            keep_whole_batches(path, batches)
        team.begin()
        problem = ""
        try:
            _answer_share(path, batches, team, model, settings, questions.parent, say, progress)
        except UserError as error:
            if team.rank == 0:
                raise
            problem = str(error)
        team.meet(problem)
        return None if team.rank else _finish(path, settings, examples, say)

    return runner(address, work, say)


def plan_batches(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Divide the questions into batches: those with a picture first, each kind sorted by length, then by position.

    Equal lengths pad little. Depends on the question file and the batch size only.
    """
    batches = []
    for has_image in (True, False):
        group = [example for example in examples if (example.image is not None) == has_image]
        group.sort(key=lambda example: len(example.text))  # a stable sort: ties keep the file's order
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches


def list_shards(path: Path) -> list[Path]:
    """List the files of an unfinished run: one for each process, and one of the batches kept from earlier runs."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.part-*"))


def read_shards(path: Path) -> dict[str, Prediction]:
    """Read all shards, and the final file, which a run may have written before its manifest: answers by question."""
    files = [file for file in (path, *list_shards(path)) if file.exists()]
    return {prediction.question_id: prediction for file in files for prediction in read_predictions(file)}


def keep_whole_batches(path: Path, batches: Sequence[Sequence[Example]]) -> None:
    """Collect the whole batches of earlier runs in one file; the questions of an incomplete batch are asked again."""
    answers = read_shards(path)
    whole = [batch for batch in batches if all(example.question_id in answers for example in batch)]
    write_predictions(_kept_shard(path), [answers[example.question_id] for batch in whole for example in batch])
    for shard in list_shards(path):
        if shard != _kept_shard(path):
            shard.unlink()


def _kept_shard(path: Path) -> Path:
    return path.with_name(f"{path.name}.part-kept")


def _answer_share(
    path: Path,
    batches: Sequence[Sequence[Example]],
    team: Team,
    model: AnswerModel,
    settings: Generation,
    image_root: Path,
    say: Callable[[str], None],
    progress: bool,
) -> None:
    """Answer this process's share of the batches that are left: every `size`-th, from its rank on."""
    kept = {prediction.question_id for prediction in read_predictions(_kept_shard(path))}
    if kept and team.rank == 0:
        say(f"{settings.task}: going on after {len(kept)} of {sum(map(len, batches))} questions")
    share = [batch for batch in batches if batch[0].question_id not in kept][team.rank :: team.size]
    part = f" ({team.rank + 1} of {team.size})" if team.size > 1 else ""
    bar = _progress_bar(settings.task + part, sum(map(len, share)), len(kept), progress and team.rank == 0)
    answer = partial(model, image_root=image_root, max_new_tokens=settings.max_new_tokens, image=settings.image)
    shard = path.with_name(f"{path.name}.part-{team.rank}")
    with open(shard, "a", encoding="utf-8", newline="\n") as file, bar:
        for batch, following in zip_longest(share, share[1:], fillvalue=()):
            model.prefetch(following, image_root, settings.image)
            append_predictions(file, _answer_batch(batch, answer))
            bar.update(len(batch))


def _progress_bar(title: str, left: int, kept: int, progress: bool) -> Bar:
    return Bar(
        total=left + kept,
        initial=kept,
        desc=title,
        unit="question",
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )


def _answer_batch(batch: Sequence[Example], answer: AnswerBatch) -> list[Prediction]:
    """The predictions of a batch; after an ordinary exception its questions are asked one by one."""
    try:
        return _ask(batch, answer)
    except Exception as error:
        if _is_fatal(error):
            raise
    return [_ask_alone(example, answer) for example in batch]


def _ask_alone(example: Example, answer: AnswerBatch) -> Prediction:
    try:
        return _ask([example], answer)[0]
    except Exception as error:
        if _is_fatal(error):
            raise
        return Prediction(example.question_id, "", error=plain(f"{type(error).__name__}: {error}"))


def _ask(batch: Sequence[Example], answer: AnswerBatch) -> list[Prediction]:
    texts = answer(batch)
    if len(texts) != len(batch):
        raise UserError(f"the model gave {len(texts)} answers to {len(batch)} questions")
    return [Prediction(example.question_id, text) for example, text in zip(batch, texts, strict=True)]


def _is_fatal(error: Exception) -> bool:
    """Whether an error concerns the whole run and not a single question, so that the run must end."""
    if isinstance(error, OSError):
        return error.errno in FATAL_ERRNOS
    if isinstance(error, (UserError, MemoryError)):
        return True
    return any(kind.__name__ in FATAL_NAMES for kind in type(error).__mro__)


def _finish(
    path: Path, settings: Generation, examples: Sequence[Example], say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the final file, remove the shards and return the record of the manifest."""
    by_id = read_shards(path)
    answers = [by_id[example.question_id] for example in examples]
    failed = [answer for answer in answers if answer.error is not None]
    if len(failed) == len(answers):
        _remove_shards(path)
        raise UserError(f"{settings.task}: all {len(failed)} questions failed; the first with: {failed[0].error}")
    if failed:
        say(
            f"{settings.task}: {len(failed)} of {len(answers)} questions failed and count as wrong; "
            f"the first is {failed[0].question_id}: {failed[0].error}"
        )
    write_predictions(path, answers)
    _remove_shards(path)
    empty = sum(1 for answer in answers if answer.error is None and not answer.text.strip())
    counts = {"questions": len(answers), "failed": len(failed), "empty": empty}
    return counts if settings.only.is_all else counts | {"ids": [answer.question_id for answer in answers]}


def _remove_shards(path: Path) -> None:
    for shard in list_shards(path):
        shard.unlink()
