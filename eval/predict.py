"""The predict stage: the answers of one source to one question file, resumable batch by batch."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from eval.settings import Generation
from eval.tasks import read_prompts
from robustmerge.records import (
    Example,
    Prediction,
    append_predictions,
    read_predictions,
    write_predictions,
)
from robustmerge.runs import Address, UserError, run_stage

Generate = Callable[[Sequence[Example], Path, int], list[str]]
# What no question is to blame for. A full disk or a lost device; an unreadable picture is an OSError too, but not here.
FATAL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
# A GPU without memory, or one that failed and fails every question from then on: classes of torch, known by name.
FATAL_NAMES = frozenset(("AcceleratorError", "OutOfMemoryError"))


def predict(
    address: Address,
    settings: Generation,
    questions: Path,
    generate: Generate,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> Path:
    """Write the predictions of one source, in the order of the question file, to `address`.

    generate: gets examples whose text is the rendered prompt, the folder that their pictures are relative to, and
    max_new_tokens; returns one text an example. It is only ever given whole batches, which the question file and
    the batch size fix, so an interrupted run that goes on gives the same bytes as an uninterrupted one.
    An ordinary exception in a batch makes its questions be asked one by one; those that fail again are recorded
    with the error. One that no question is to blame for (`_is_fatal`) ends the run, which goes on when it is
    started again. Raises UserError if every question failed.
    """

    def work(path: Path) -> dict:
        return _answer_all(path, settings, Path(questions), generate, say, progress)

    return run_stage(address, work, say)


def plan_batches(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Cut the questions into batches: with and without a picture apart, each sorted by length, then by position.

    Equal lengths pad little. Depends on the question file and the batch size only.
    """
    batches = []
    for has_image in (True, False):
        group = [example for example in examples if (example.image is not None) == has_image]
        group.sort(key=lambda example: len(example.text))  # a stable sort: ties keep the file's order
        batches += [group[start : start + batch_size] for start in range(0, len(group), batch_size)]
    return batches


def _answer_all(
    path: Path,
    settings: Generation,
    questions: Path,
    generate: Generate,
    say: Callable[[str], None],
    progress: bool,
) -> dict:
    examples = read_prompts(questions, settings.prompt)
    batches = plan_batches(examples, settings.batch_size)
    partial = path.with_name(path.name + ".partial")
    found = _keep_whole_batches(path, partial, batches)
    if found:
        say(f"{settings.task}: going on after {len(found)} of {len(examples)} questions")
    with (
        open(partial, "a", encoding="utf-8", newline="\n") as file,
        _bar(settings.task, len(examples), len(found), progress) as bar,
    ):
        for batch in batches:
            if batch[0].question_id in found:
                continue
            answers = _answer_batch(batch, questions.parent, settings.max_new_tokens, generate)
            append_predictions(file, answers)
            found.update((answer.question_id, answer) for answer in answers)
            bar.update(len(batch))
    return _finish(path, partial, settings, [found[example.question_id] for example in examples], say)


def _keep_whole_batches(path: Path, partial: Path, batches: Sequence[Sequence[Example]]) -> dict[str, Prediction]:
    """What an interrupted run has left: the answers of whole batches. A batch that was cut is asked again.

    The final file counts too: it may have been written just before the manifest was not.
    """
    left: dict[str, Prediction] = {}
    for file in (path, partial):
        if file.exists():
            left.update((prediction.question_id, prediction) for prediction in read_predictions(file))
    kept = [
        left[example.question_id]
        for batch in batches
        if all(example.question_id in left for example in batch)
        for example in batch
    ]
    if partial.exists():
        write_predictions(partial, kept)
    return {prediction.question_id: prediction for prediction in kept}


def _bar(task: str, total: int, done: int, progress: bool) -> tqdm:
    return tqdm(
        total=total,
        initial=done,
        desc=task,
        unit="question",
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 15,
        dynamic_ncols=True,
    )


def _answer_batch(
    batch: Sequence[Example], image_root: Path, max_new_tokens: int, generate: Generate
) -> list[Prediction]:
    try:
        return _ask(batch, image_root, max_new_tokens, generate)
    except Exception as error:
        if _is_fatal(error):
            raise
    return [_ask_alone(example, image_root, max_new_tokens, generate) for example in batch]


def _ask_alone(example: Example, image_root: Path, max_new_tokens: int, generate: Generate) -> Prediction:
    try:
        return _ask([example], image_root, max_new_tokens, generate)[0]
    except Exception as error:
        if _is_fatal(error):
            raise
        return Prediction(example.question_id, "", error=f"{type(error).__name__}: {error}")


def _is_fatal(error: Exception) -> bool:
    """Whether no single question is to blame, so that the run must end instead of recording it."""
    if isinstance(error, OSError):
        return error.errno in FATAL_ERRNOS
    if isinstance(error, (UserError, MemoryError)):
        return True
    return any(kind.__name__ in FATAL_NAMES for kind in type(error).__mro__)


def _ask(batch: Sequence[Example], image_root: Path, max_new_tokens: int, generate: Generate) -> list[Prediction]:
    texts = generate(batch, image_root, max_new_tokens)
    if len(texts) != len(batch):
        raise UserError(f"the model gave {len(texts)} answers to {len(batch)} questions")
    return [Prediction(example.question_id, text) for example, text in zip(batch, texts, strict=True)]


def _finish(
    path: Path, partial: Path, settings: Generation, answers: Sequence[Prediction], say: Callable[[str], None]
) -> dict:
    failed = [answer for answer in answers if answer.error is not None]
    if len(failed) == len(answers):
        partial.unlink(missing_ok=True)
        raise UserError(f"{settings.task}: all {len(failed)} questions failed; the first with: {failed[0].error}")
    if failed:
        say(
            f"{settings.task}: {len(failed)} of {len(answers)} questions failed and count as wrong; "
            f"the first is {failed[0].question_id}: {failed[0].error}"
        )
    write_predictions(path, answers)
    partial.unlink(missing_ok=True)
    empty = sum(1 for answer in answers if answer.error is None and not answer.text.strip())
    return {"questions": len(answers), "failed": len(failed), "empty": empty}
