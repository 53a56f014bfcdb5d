"""Records that stages exchange: examples, predictions and scores, with their readers and writers."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from robustmerge.stage.files import read_json, write_atomically
from robustmerge.stage.settings import UserError

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Example:
    """One question of a task.

    text: what is asked, without the image placeholder. answer: the training target and the first reference.
    image: path relative to the folder of the question file; None for a question without a picture.
    references: all accepted answers where there are several. choices: options in the order of their letters.
    size: width and height of the picture in pixels (boxes). turns: later turns of a training conversation.
    """

    question_id: str
    text: str
    answer: str
    image: str | None = None
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every accepted answer."""
        return self.references or (self.answer,)


@dataclass(frozen=True)
class Prediction:
    """What a source answered; `error` says why there is no answer."""

    question_id: str
    text: str
    error: str | None = None


@dataclass(frozen=True)
class Score:
    """The score of one source on one task. value: 0..100 (captions can exceed it); values: per question, 0..1.

    value: None if it cannot be had here; reason: why. parts: further figures by name, in per cent, None alike.
    aggregate: how the value follows from the questions, a name in eval/metrics/aggregates.py. statistics: per question,
    what is summed for it, where that is not its value. clusters: the picture of each question, where several share one.
    n_asked: questions of the whole file, where only some were to be answered (0: all were).
    """

    task: str
    metric: str
    value: float | None
    n_expected: int
    n_scored: int
    n_empty: int
    n_unparsed: int
    n_failed: int
    values: dict[str, float]
    reason: str = ""
    parts: dict[str, float | None] = field(default_factory=dict)
    aggregate: str = "mean"
    statistics: dict[str, list[float]] = field(default_factory=dict)
    clusters: dict[str, str] = field(default_factory=dict)
    n_asked: int = 0


def read_examples(path: Path, number_ids: bool = False, need_answer: bool = True) -> list[Example]:
    """Read a question file: JSON lines, or a JSON list in LLaVA's format.

    LLaVA's names are understood: `answer_bbox` is an answer, `conversations` is a training dialogue, `id` is a
    question_id; fields that we do not use (shuffled metadata of the published files) are left out.
    number_ids: a question's id is its number in the file, from 1, whatever the file calls it. need_answer: without,
    a missing answer is "".
    Raises UserError naming the file, the record and what is wrong with it, for the first five bad records.
    """
    examples, problems = [], []
    for index, record in enumerate(_read_records(Path(path))):
        try:
            numbered = {"question_id": index + 1} if number_ids else {}
            examples.append(_example_of(record, {} if need_answer else {"answer": ""}, numbered))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path}, record {index + 1}: {_explain(error)}")
    doubled = [name for name, count in Counter(e.question_id for e in examples).items() if count > 1]
    if doubled:
        problems.append(
            f"{path}: question_id is not unique: {', '.join(doubled[:5])} (data.ids=number numbers the questions)"
        )
    if problems:
        more = f"\n... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError("\n".join(problems[:5]) + more)
    return examples


def read_images(path: Path) -> tuple[str, ...]:
    """List the pictures that a question file names, each once, without checking the questions.

    Raises UserError if the file does not exist or is no JSON.
    """
    records = (record for record in _read_records(Path(path)) if isinstance(record, Mapping))
    return tuple(dict.fromkeys(record["image"] for record in records if isinstance(record.get("image"), str)))


def _explain(error: Exception) -> str:
    return f"field {error} is missing" if isinstance(error, KeyError) else str(error)


def _read_records(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"question file {path} does not exist") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error}") from error
    try:
        if path.suffix == ".json":
            content = json.loads(text)
            return content if isinstance(content, list) else [content]
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


def _example_of(record: Any, default: Mapping[str, Any], override: Mapping[str, Any]) -> Example:
    _require(isinstance(record, Mapping), "a record", "an object", record)
    record = {**default, **record, **override}
    (text, answer), *later = _turns_of(record)
    image, size = record.get("image"), record.get("size")
    _require(image is None or isinstance(image, str), "field 'image'", "the path of one picture", image)
    return Example(
        question_id=_scalar(record, "question_id" if "question_id" in record else "id"),
        text=text.replace(IMAGE_PLACEHOLDER, "").strip(),
        answer=answer,
        image=image,
        references=_scalars(record, "references"),
        choices=_scalars(record, "choices"),
        size=_size_of(size) if size is not None else None,
        turns=tuple(later),
    )


def _require(holds: bool, what: str, wanted: str, value: Any) -> None:
    if not holds:
        shown = json.dumps(value, ensure_ascii=False)
        raise TypeError(f"{what} must be {wanted}, got {shown if len(shown) <= 80 else shown[:79] + '…'}")


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _scalar(record: Mapping[str, Any], name: str) -> str:
    _require(_is_scalar(record[name]), f"field '{name}'", "text or a number", record[name])
    return str(record[name])


def _scalars(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that may be missing or null."""
    values = record.get(name)
    if values is None:
        return ()
    holds = isinstance(values, list) and all(map(_is_scalar, values))
    _require(holds, f"field '{name}'", "a list of texts or numbers", values)
    return tuple(map(str, values))


def _size_of(size: Any) -> tuple[int, int]:
    holds = isinstance(size, list) and len(size) == 2 and all(isinstance(side, (int, float)) for side in size)
    _require(holds, "field 'size'", "the picture's [width, height]", size)
    return int(size[0]), int(size[1])


def _turns_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    said = record.get("conversations")
    if said is not None:
        return _conversation_of(said)
    later = record.get("turns") or []
    holds = isinstance(later, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(map(_is_scalar, turn)) for turn in later
    )
    _require(holds, "field 'turns'", "a list of [question, answer]", later)
    return [
        (_scalar(record, "text"), _answer_of(record)),
        *((str(question), str(answer)) for question, answer in later),
    ]


def _answer_of(record: Mapping[str, Any]) -> str:
    box = record.get("answer_bbox")
    if isinstance(box, list) and len(box) == 4 and all(map(_is_scalar, box)):
        return f"[{', '.join(map(str, box))}]"
    if "answer_bbox" not in record and "answer" not in record and (accepted := _scalars(record, "references")):
        return accepted[0]
    return _scalar(record, "answer_bbox" if "answer_bbox" in record else "answer")


def _conversation_of(said: Any) -> list[tuple[str, str]]:
    holds = isinstance(said, list) and all(isinstance(message, Mapping) for message in said)
    _require(holds, "field 'conversations'", "a list of messages", said)
    roles = [message.get("from") for message in said]
    if roles != ["human", "gpt"] * (len(said) // 2) or not said:
        speakers = ", ".join(map(str, roles)) or "nothing"
        raise ValueError(f"a conversation is human, gpt, human, gpt, ...; got {speakers}")
    values = [_scalar(message, "value") for message in said]
    return list(zip(values[::2], values[1::2], strict=True))


def _shown(record: Any) -> dict[str, Any]:
    """The fields of a record, except those at their default."""
    shown = {}
    for field_ in dataclasses.fields(record):
        factory, value = field_.default_factory, getattr(record, field_.name)
        if value != (field_.default if factory is dataclasses.MISSING else factory()):
            shown[field_.name] = value
    return shown


def _plain(record: Any) -> str:
    """A record as one JSON line."""
    return json.dumps(_shown(record), ensure_ascii=False) + "\n"


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSON lines, whole or not at all."""
    write_atomically(path, "".join(_plain(example) for example in examples))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as JSON lines, whole or not at all."""
    write_atomically(path, "".join(_plain(prediction) for prediction in predictions))


def append_predictions(file: IO[str], predictions: Iterable[Prediction]) -> None:
    """Append predictions to an open file and flush it."""
    file.write("".join(_plain(prediction) for prediction in predictions))
    file.flush()


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions; a last line that a kill has cut is dropped.

    Raises UserError naming file and line if any other line is not a prediction.
    """
    # Split at "\n" alone: an answer may hold U+2028, which str.splitlines would take for a line's end.
    *lines, _cut = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    predictions = []
    for number, line in enumerate(lines, start=1):
        try:
            prediction = Prediction(**json.loads(line))
            for name in ("question_id", "text"):
                value = getattr(prediction, name)
                _require(isinstance(value, str), f"field '{name}'", "text", value)
            predictions.append(prediction)
        except (json.JSONDecodeError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a prediction: {error}") from error
    return predictions


def write_score(path: Path, score: Score) -> None:
    """Write a score as JSON, whole or not at all; the statistics of a question are one line."""
    shown = _shown(score)
    rows = shown.pop("statistics", {})
    text = json.dumps(shown, ensure_ascii=False, indent=1)
    if rows:
        lines = (f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(row)}" for name, row in rows.items())
        text = text.removesuffix("\n}") + ',\n "statistics": {\n' + ",\n".join(lines) + "\n }\n}"
    write_atomically(path, text + "\n")


def read_score(path: Path) -> Score:
    """Read a score. Raises UserError if the file is not one."""
    values = read_json(path, "a score")
    try:
        return Score(**values)
    except TypeError as error:
        raise UserError(f"{path} is not a score: {error}") from error
