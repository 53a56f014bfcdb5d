"""The predict stage: the answers of one source to one question file; the batch is the unit of resume and of sharing."""

from __future__ import annotations

import errno
import glob
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from eval.questions import read_prompts
from eval.settings import Generation
from robustmerge.stage.address import Address, run_stage
from robustmerge.stage.records import Example, Prediction, append_predictions, read_predictions, write_predictions
from robustmerge.stage.settings import UserError

Generate = Callable[[Sequence[Example], Path, int], list[str]]
Ahead = Callable[[Sequence[Example], Path], None]
# What no question is to blame for. A full disk or a lost device; an unreadable picture is an OSError too, but not here.
FATAL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
# A GPU without memory, or one that failed and fails every question from then on: classes of torch, known by name.
FATAL_NAMES = frozenset(("AcceleratorError", "OutOfMemoryError"))


class Team(Protocol):
    """The processes that answer together, as llava_ext.processes has them. rank: of this one; size: how many."""

    rank: int
    size: int

    def begin(self) -> None:
        """The first process lets the others begin."""

    def meet(self, problem: str = "") -> None:
        """The first process waits for the others, who tell their problem. Raises UserError for one that was told."""


Together = Callable[[Address, Callable[[Path, Team], dict | None], Callable[[str], None]], Path]


class SingleProcess:
    """A team of one."""

    rank, size = 0, 1

    def begin(self) -> None:
        """Nobody waits."""

    def meet(self, problem: str = "") -> None:
        """Nobody is to come."""


def read_nothing(examples: Sequence[Example], image_root: Path) -> None:
    """Nothing is read ahead."""


def run_in_one_process(address: Address, work: Callable[[Path, Team], dict | None], say: Callable[[str], None]) -> Path:
    """The stage in this process."""
    return run_stage(address, lambda path: work(path, SingleProcess()), say)


def predict(
    address: Address,
    settings: Generation,
    questions: Path,
    generate: Generate,
    say: Callable[[str], None] = print,
    progress: bool = True,
    together: Together = run_in_one_process,
    ahead: Ahead = read_nothing,
) -> Path:
    """Write the predictions of one source, in the order of the question file, to `address`.

    generate: gets examples whose text is the rendered prompt, the folder that their pictures are relative to, and
    max_new_tokens; returns one text an example. It is only ever given whole batches, which the questions and the batch
    size fix, so an interrupted run that goes on gives the same bytes as an uninterrupted one, with any number of
    processes. together: runs the stage in several of them, which share the batches. ahead: is told the batch that comes
    next, and the folder of its pictures, before each is asked.
    An ordinary exception in a batch makes its questions be asked one by one; those that fail again are recorded
    with the error. One that no question is to blame for (`_is_fatal`) ends the run, which goes on when it is
    started again. Raises UserError if every question failed.
    """

    def work(path: Path, team: Team) -> dict | None:
        examples = read_prompts(Path(questions), settings.prompt, settings.only)
        batches = plan_batches(examples, settings.batch_size)
        if team.rank == 0:
            keep_whole_batches(path, batches)
        team.begin()
        problem = ""
        try:
            _answer_share(path, settings, Path(questions).parent, batches, generate, ahead, team, say, progress)
        except UserError as error:
            if team.rank == 0:
                raise
            problem = str(error)
        team.meet(problem)
        return None if team.rank else _finish(path, settings, examples, say)

    return together(address, work, say)


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


def list_shards(path: Path) -> list[Path]:
    """What runs that are not finished have answered: a file a process, and what was kept of earlier runs."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.part-*"))


def read_shards(path: Path) -> dict[str, Prediction]:
    """By question, the answers of all shards, and of the final file: it may have been written before the manifest."""
    files = [file for file in (path, *list_shards(path)) if file.exists()]
    return {prediction.question_id: prediction for file in files for prediction in read_predictions(file)}


def keep_whole_batches(path: Path, batches: Sequence[Sequence[Example]]) -> None:
    """Put the answers of whole batches that earlier runs have left into one file. A cut batch is asked again."""
    left = read_shards(path)
    whole = [batch for batch in batches if all(example.question_id in left for example in batch)]
    write_predictions(_kept(path), [left[example.question_id] for batch in whole for example in batch])
    for shard in list_shards(path):
        if shard != _kept(path):
            shard.unlink()


def _kept(path: Path) -> Path:
    return path.with_name(f"{path.name}.part-kept")


def _answer_share(
    path: Path,
    settings: Generation,
    image_root: Path,
    batches: Sequence[Sequence[Example]],
    generate: Generate,
    ahead: Ahead,
    team: Team,
    say: Callable[[str], None],
    progress: bool,
) -> None:
    """Answer the batches of this process: of those that are left, every `size`-th from its rank on."""
    kept = {prediction.question_id for prediction in read_predictions(_kept(path))}
    if kept and team.rank == 0:
        say(f"{settings.task}: going on after {len(kept)} of {sum(map(len, batches))} questions")
    share = [batch for batch in batches if batch[0].question_id not in kept][team.rank :: team.size]
    total, name = sum(map(len, share)), settings.task + (f" ({team.rank + 1} of {team.size})" if team.size > 1 else "")
    shard = path.with_name(f"{path.name}.part-{team.rank}")
    with (
        open(shard, "a", encoding="utf-8", newline="\n") as file,
        _bar(name, total + len(kept), len(kept), progress and team.rank == 0) as bar,
    ):
        for batch, coming in zip_longest(share, share[1:], fillvalue=()):
            ahead(coming, image_root)
            append_predictions(file, _answer_batch(batch, image_root, settings.max_new_tokens, generate))
            bar.update(len(batch))


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


def _finish(path: Path, settings: Generation, examples: Sequence[Example], say: Callable[[str], None]) -> dict:
    found = read_shards(path)
    answers = [found[example.question_id] for example in examples]
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
