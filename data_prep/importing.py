"""Import a task from question files or an owner's release: check every row and its picture, copy what is good.

All rows are read twice. First their texts are checked and their pictures looked for, before anything is written. Then
each picture is decoded and copied, and the row goes to a journal, from which a killed run goes on. Rows that cannot be
used are listed with the reason in rejected.jsonl. What is kept in memory of a row is its id and its picture's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from data_prep import import_journal
from data_prep.annotations import Annotations, read_annotations
from data_prep.faults import BAD_PICTURE, FAULTY, NO_PICTURE, REJECTED, Fault, format_kinds, format_rejected
from data_prep.import_journal import Entry
from data_prep.parallel import map_in_order, with_progress_bar
from data_prep.picture_copies import copy_pictures, find_link_out, name_in_stage
from data_prep.picture_places import Place, find_place
from data_prep.rows import find_image_root, iterate_rows
from data_prep.settings import SPLITS, TaskData
from data_prep.splits import draw_val, open_split
from robustmerge.stage.address import UNFINISHED
from robustmerge.stage.files import WholeFile, remove
from robustmerge.stage.json_stream import Element
from robustmerge.stage.records import Example, format_scalar, parse_example
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import is_blank

AnswerCheck = Callable[[str, Example], str]  # of a split's example: what is wrong with its answers, "" if nothing
IMAGES_FOR_A_POOL = 2000  # from this number on, several processes decode sooner than one
BATCH = 64  # rows whose pictures a process takes at a time


class Row(NamedTuple):
    """A row of a split. number: from 1; result: its example, or why it cannot be used."""

    number: int
    element: Element
    result: Example | Fault


@dataclass
class Survey:
    """What the first reading found of every split.

    rows: how many; faults: those of rows, by number; places: where each picture is, by its path in the stage's folder;
    splits: those with each picture; asked: how many questions of train are on each picture; links: pictures reached by
    links out of their folder; drawn: the numbers of the rows in a sample.
    """

    rows: Counter[str] = field(default_factory=Counter)
    faults: dict[str, dict[int, Fault]] = field(default_factory=lambda: {split: {} for split in SPLITS})
    places: dict[str, Place] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    links: dict[str, str] = field(default_factory=dict)
    drawn: dict[str, frozenset[int]] = field(default_factory=dict)

    def wants(self, split: str, number: int) -> bool:
        return split not in self.drawn or number in self.drawn[split]

    def count(self, split: str) -> int:
        """How many rows of a split are to be used."""
        return len(self.drawn[split]) if split in self.drawn else self.rows[split]


def _own_id(record: Mapping[str, Any], example: Example) -> str:
    """The id that a question has in its file, also where data.ids=number gives it another: annotations go by it."""
    name = next((name for name in ("question_id", "id") if record.get(name) is not None), None)
    return format_scalar(record[name], f"field '{name}'") if name else f"(row {example.question_id}, without an id)"


def accept_any(split: str, example: Example) -> str:
    """The check of a task whose answers are not compared."""
    return ""


def import_task(folder: Path, settings: TaskData, say: Callable[[str], None], check: AnswerCheck = accept_any) -> dict:
    """Write a task's splits, its pictures and rejected.jsonl into `folder`. Returns what the manifest should record.

    check: is asked of every example, and again when the size of its picture is known. Raises UserError with the first
    problems and their number if more rows than settings.most_rejected are faulty, or their pictures missing or
    unreadable.
    """
    reader = _Reader(settings, check)
    survey = reader.survey()
    for split in settings.splits:
        _refuse_too_many(folder, settings, split, survey)
    if annotations := reader.annotations:
        say(f"{settings.task}: {annotations.kind} from {annotations.path}")
    if survey.links:
        (source, target), *_ = survey.links.items()
        say(f"{settings.task}: images behind links out of data.images: {len(survey.links)}, as {source} -> {target}")
    journals = folder / UNFINISHED
    journals.mkdir(parents=True, exist_ok=True)
    for split in settings.splits:
        reader.copy(folder, journals / f"{split}.jsonl", split, survey)
        try:
            _refuse_too_many(folder, settings, split, survey)
        except UserError:  # whose pictures may be mended until the next run
            for _ in import_journal.keep_while(journals / f"{split}.jsonl", _has_usable_picture):
                pass
            raise
    record = _publish(folder, journals, settings, survey, say)
    remove(journals)
    return record | ({"annotations": annotations.kind} if annotations else {})


def _refuse_too_many(folder: Path, settings: TaskData, split: str, survey: Survey) -> None:
    """Raises UserError if more rows of a split cannot be used than may be left out; a long list goes to a file."""
    faults, total = survey.faults[split], survey.count(split)
    if len(faults) <= settings.most_rejected * total:
        return
    problems = list(dict.fromkeys(map(str, faults.values())))
    rule = f"at most {settings.most_rejected:.1%} may be left out" if settings.most_rejected else "none may be left out"
    where = ""
    if len(problems) > (few := 5):
        (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
        list_of_all = folder / UNFINISHED / REJECTED
        with WholeFile(list_of_all) as whole:
            whole.file.writelines(format_rejected(split, number, fault) for number, fault in faults.items())
        where = f"; all of them: {list_of_all}"
    counts = format_kinds(Counter(fault.kind for fault in faults.values()))
    raise UserError(
        "\n  ".join(
            [
                f"{settings.task}: {len(faults):,} of {total:,} rows of {split} cannot be used ({counts}), and {rule} "
                f"(data.most_rejected={settings.most_rejected:g}){where}",
                *first_few(problems, few),
            ]
        )
    )


class _Reader:
    """Reads the rows of a task, the same ones in the same order every time."""

    def __init__(self, settings: TaskData, check: AnswerCheck):
        self.settings, self.check = settings, check
        self.files = settings.input_files
        self.roots = {split: find_image_root(settings, self.files[split]) for split in settings.splits}
        has_annotations = settings.source == "questions" and settings.annotations is not None
        self.annotations: Annotations | None = None
        if has_annotations:
            self.annotations = read_annotations(self.files["annotations"][0])

    def survey(self) -> Survey:
        """Check all rows but for what is in their pictures. Raises UserError for files that cannot be read at all."""
        survey = Survey()
        for split in self.settings.splits:
            self._draw_sample(split, survey)
            ids: dict[str, str] = {}
            for number, element in self._rows(split):
                survey.rows[split] += 1
                if survey.wants(split, number):
                    result = self._survey_row(split, number, element, ids, survey)
                    if isinstance(result, Fault):
                        survey.faults[split][number] = result
                    elif split == "train":
                        survey.asked[_group_of(result)] += 1
            if not survey.rows[split]:
                raise UserError(f"{self.settings.task}: no examples in {', '.join(map(str, self.files[split]))}")
            if split == "test" and self.annotations is not None:
                self.annotations.check_count(survey.rows[split])
        self._check_folders(survey)
        return survey

    def copy(self, folder: Path, journal: Path, split: str, survey: Survey) -> None:
        """Copy the pictures of a split, and write its rows into the journal from where an earlier run has stopped."""
        done = self._go_on(journal, split, survey)
        jobs = self.settings.jobs if len(survey.places) >= IMAGES_FOR_A_POOL else 1
        waiting: deque[list[Row]] = deque()
        sizes: dict[str, tuple[int, int] | str] = {}

        def batches() -> Iterator[list[tuple[str, Place]]]:
            asked: set[str] = set()
            rows = self._iterate_wanted(split, survey, done)
            while batch := list(itertools.islice(rows, BATCH)):
                waiting.append(batch)
                names = {row.result.image for row in batch if isinstance(row.result, Example) and row.result.image}
                new = sorted(names - asked)
                asked.update(new)
                yield [(name, survey.places[name]) for name in new]

        title = f"{self.settings.task}: pictures of {split}"
        with (
            open(journal, "a", encoding="utf-8") as file,
            with_progress_bar(None, title, survey.rows[split], "row") as bar,
        ):
            for taken in map_in_order(partial(copy_pictures, folder), batches(), jobs):
                sizes |= taken
                for row in waiting.popleft():
                    result = self._finish(split, row, sizes)
                    if isinstance(result, Fault):
                        survey.faults[split][row.number] = result
                    import_journal.append(file, Entry(row.number, result))
                    bar.update(row.number - bar.n)
                file.flush()

    def _rows(self, split: str) -> Iterator[tuple[int, Element]]:
        return enumerate(iterate_rows(self.settings, split, self.files[split]), start=1)

    def _refuse(self, kind: str, problem: object, split: str, element: Element, question_id: str = "") -> Fault:
        return Fault(kind, str(problem), str(element.file or self.files[split][0]), element.place, question_id)

    def _draw_sample(self, split: str, survey: Survey) -> None:
        if size := getattr(self.settings.sample, split):
            total = sum(1 for _ in self._rows(split))
            rng = Random(f"{self.settings.seed}/{self.settings.task}/sample/{split}")
            survey.drawn[split] = frozenset(rng.sample(range(1, total + 1), min(size, total)))

    def _parse(self, split: str, number: int, element: Element) -> Example:
        """The example in a row, its picture under the path in the stage's folder.

        Raises TypeError or ValueError that says what is wrong.
        """
        annotations = self.annotations if split == "test" else None
        by_number = number if self.settings.ids == "number" else None
        example = parse_example(element.value, by_number, need_answer=annotations is None)
        if annotations is not None:
            own = dataclasses.replace(example, question_id=_own_id(element.value, example))
            example = dataclasses.replace(annotations.join(number, own), question_id=example.question_id)
        texts = {
            "an empty answer": (example.answer, *example.references, *(answer for _, answer in example.turns)),
            "an empty option": example.choices,
            "an empty later question": [question for question, _ in example.turns],
        }
        if is_blank(example.question_id):
            raise ValueError("field 'question_id' is empty")
        if is_blank(example.text):
            raise ValueError(f"question {example.question_id} is empty")
        if empty := next((what for what, shown in texts.items() if any(map(is_blank, shown))), None):
            raise ValueError(f"question {example.question_id} has {empty}")
        if problem := self.check(split, example):
            raise ValueError(f"question {example.question_id}: {problem}")
        return example

    def _survey_row(
        self, split: str, number: int, element: Element, ids: dict[str, str], survey: Survey
    ) -> Example | Fault:
        try:
            example = self._parse(split, number, element)
            if other := ids.get(example.question_id):
                rule = "data.ids=number numbers the questions"
                raise ValueError(f"question_id is not unique: {example.question_id} is also that of {other} ({rule})")
        except (TypeError, ValueError) as error:
            return self._refuse(FAULTY, error, split, element)
        ids[example.question_id] = element.place
        try:
            return example if example.image is None else self._look_for(split, example, example.image, survey)
        except (OSError, ValueError, UserError) as error:
            return self._refuse(NO_PICTURE, error, split, element, example.question_id)

    def _look_for(self, split: str, example: Example, image: str, survey: Survey) -> Example:
        """The example with its picture's path in the stage's folder.

        Raises OSError, ValueError or UserError if there is no such picture.
        """
        root = self.roots[split]
        name = name_in_stage(root, image)
        known = survey.places.get(name)
        if known is None or len(set(self.roots.values())) > 1:
            place = find_place(root, Path(name).relative_to("images").as_posix())
            if known is not None and known != place and not os.path.samefile(known.path, place.path):
                raise ValueError(f"{place} and {known} have the same name; give data.images")
            survey.places.setdefault(name, place)
            if target := find_link_out(root, place):
                survey.links[place.path] = target
        survey.splits[name] = survey.splits.get(name, 0) | 1 << SPLITS.index(split)
        return dataclasses.replace(example, image=name)

    def _check_folders(self, survey: Survey) -> None:
        """Raises UserError if a picture has the name of a folder of pictures."""
        folders: dict[str, str] = {}  # with a picture below
        for name in survey.places:
            place = os.path.dirname(name)
            while place and place not in folders:
                folders[place] = name
                place = os.path.dirname(place)
        for name in folders.keys() & survey.places.keys():
            source, below = survey.places[name], survey.places[folders[name]]
            rule = "have the same name; give data.images"
            raise UserError(f"{self.settings.task}: {source} and a folder of {below} {rule}")

    def _go_on(self, journal: Path, split: str, survey: Survey) -> int:
        """Keep a journal as far as it agrees with what would be found today; returns the number of its last row.

        The task's parser, which the address does not cover, may have changed since an earlier run.
        """

        def holds(entry: Entry) -> bool:
            known, result = survey.faults[split].get(entry.number), entry.result
            if isinstance(result, Fault):
                return known.text == result.text if known else not _has_usable_picture(entry)
            return known is None and not self.check(split, result)

        done = 0
        for entry in import_journal.keep_while(journal, holds):
            done = entry.number
            if isinstance(entry.result, Fault):
                survey.faults[split][done] = entry.result
        return done

    def _iterate_wanted(self, split: str, survey: Survey, done: int) -> Iterator[Row]:
        """Yield the rows after `done` that are drawn."""
        for number, element in self._rows(split):
            if number > done and survey.wants(split, number):
                fault = survey.faults[split].get(number)
                yield Row(number, element, fault or self._parse_again(split, number, element))

    def _parse_again(self, split: str, number: int, element: Element) -> Example:
        example = self._parse(split, number, element)
        name = None if example.image is None else name_in_stage(self.roots[split], example.image)
        return dataclasses.replace(example, image=name)

    def _finish(self, split: str, row: Row, sizes: Mapping[str, tuple[int, int] | str]) -> Example | Fault:
        """The row's example with the size of its picture; or else what is wrong with it."""
        example = row.result
        if isinstance(example, Fault) or example.image is None:
            return example
        size = sizes[example.image]
        if isinstance(size, str):
            return self._refuse(BAD_PICTURE, size, split, row.element, example.question_id)
        said, example = example.size, dataclasses.replace(example, size=size)
        problem = self.check(split, example)
        if said not in (None, size):
            problem = f"field 'size' is {list(said)}, its picture has {size[0]} x {size[1]} pixels"
        if problem:
            problem = f"question {example.question_id}: {problem}"
            return self._refuse(FAULTY, problem, split, row.element, example.question_id)
        return example


def _has_usable_picture(entry: Entry) -> bool:
    """Whether nothing is known against the picture of a row."""
    return not (isinstance(entry.result, Fault) and entry.result.kind == BAD_PICTURE)


def _group_of(example: Example) -> str:
    """What keeps questions of train together: their picture; a question without one stands alone."""
    return example.image or f"question {example.question_id}"


def _publish(
    folder: Path, journals: Path, settings: TaskData, survey: Survey, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the splits from the journals. Returns what the manifest should record."""
    cuts_val = "val" not in settings.splits and "train" in settings.splits
    val = draw_val(survey.asked, settings) if cuts_val else frozenset()
    cut: list[str] = []
    counts, rejected = Counter[str](), {split: Counter[str]() for split in settings.splits}
    with contextlib.ExitStack() as opened:
        refused = opened.enter_context(WholeFile(folder / REJECTED)).file
        writers = {split: opened.enter_context(open_split(folder, split)) for split in SPLITS}
        for split in settings.splits:
            for number, result in import_journal.read(journals / f"{split}.jsonl"):
                if isinstance(result, Fault):
                    rejected[split][result.kind] += 1
                    refused.write(format_rejected(split, number, result))
                    continue
                to = "val" if split == "train" and _group_of(result) in val else split
                cut += [result.question_id] if to != split else []
                writers[to].write(result)
                counts[to] += 1
    shared = sum(1 for bits in survey.splits.values() if bits.bit_count() > 1)
    record: dict[str, Any] = {
        "examples": {split: counts[split] for split in SPLITS},
        "images_in_several_splits": shared,
    }
    if survey.drawn:
        record["sampled_rows"] = {split: sorted(rows) for split, rows in survey.drawn.items()}
    if any(rejected.values()):
        record["rejected"] = {split: dict(kinds) for split, kinds in rejected.items() if kinds}
    if cuts_val:
        record["val_cut_from_train"] = cut
    for message in _describe(settings, record):
        say(f"{settings.task}: {message}")
    return record


def _describe(settings: TaskData, record: Mapping[str, Any]) -> Iterator[str]:
    """What the user should know of the splits."""
    for split, kinds in record.get("rejected", {}).items():
        yield f"{sum(kinds.values()):,} rows of {split} are left out ({format_kinds(kinds)}): {REJECTED}"
    if (cut := record.get("val_cut_from_train")) is not None:
        total = len(cut) + record["examples"]["train"]
        rule = f"whole pictures with all their questions, at most {settings.counts.val} and a tenth, or one picture"
        yield f"no val file, {len(cut):,} of {total:,} examples of train serve as val ({rule})"
    if shared := record["images_in_several_splits"]:
        yield f"{shared:,} images occur in more than one split"
