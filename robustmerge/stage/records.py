"""Records that stages exchange: examples, predictions and scores, with their readers and writers."""

from __future__ import annotations

import codecs
import dataclasses
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from robustmerge.stage.files import parse_json, read_json, require_file, write_atomically
from robustmerge.stage.json_stream import iterate_records
from robustmerge.stage.settings import UserError, first_few
from robustmerge.stage.text import plain, quote, shorten

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")

IMAGE_PLACEHOLDER = "<image>"
CLASSES = "classes.json"  # beside the questions of a task of classes: their names in the order of a classifier's rows
MOST_CHOICES = 26  # options have letters
LONGEST_PATH = 1000  # characters of a picture's path
LARGEST_SIZE = 10**6  # pixels
FINITE = sys.float_info.max
WHOLE = 2**53  # up to it a float holds every whole number
MOST_PROBLEMS = 1000  # bad records of a file, after which it is not read on
_PICTURES = ("image", "images")
_OTHER_MEDIA = {"video", "videos", "audio", "audios"}
_TEXTS = {"question_id", "id", "text", "answer", "references", "choices", "turns", "details"}
# A value that is the name or the content of a picture, and a field's name that says so.
_PICTURE = re.compile(
    r"[^\n]{1,1000}\.(avif|bmp|gif|hei[cf]|jfif|jp[eg2]|jpeg|pgm|png|pnm|ppm|svg|tiff?|webp)([?#]\S{0,1000})?"
    r"|data:(image|video|audio)/.*",
    re.IGNORECASE | re.DOTALL,
)
_MEDIUM = re.compile(r"(?<![a-z])(image|img|picture|photo|video|audio)s?(?![a-z])", re.IGNORECASE)
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# How other formats mark the place of a picture; a picture of HTML or Markdown is a text, but for a tag without its
# source where a marker stands.
_FOREIGN_MARKER = re.compile(
    r"<\s?[/|]?\s?(\w{1,30}[_-])?image[\s_-]?\w*\s?[/|]?>|&lt;image\s?&gt;|</img>|<im_(start|end|patch)>"
    r"|<\|(img|vision|video|audio)\w*\|>|<(img|vision|video|audio)[_-]\w+>|\[(image|img)[\s_-]?\d*\]"
    r"|\A\s*<(img|video|audio)>|<(img|video|audio)>\s*\Z",
    re.IGNORECASE,
)
# Names of a further picture beside the one that is asked about.
_FURTHER_PICTURE = re.compile(
    r"(image|img|picture|photo)s?[_-]?\d+|(left|right|before|after|first|second)[_-](image|img|picture|photo)",
    re.IGNORECASE,
)
_OPTIONS = re.compile(r"(\w+_)?(options?|choices?|candidates)", re.IGNORECASE)  # names that choices have elsewhere
_LETTER = re.compile(r"\(?[A-Za-z]\)?\.?|\d")  # an answer that means nothing without the choices
_BESIDE_DIALOGUES = ("system", "tools", "history")  # what other formats ask with a dialogue
# The keys of a message (who speaks, and what) and the two speakers, by the field of the dialogue.
_DIALOGUES = {
    "conversations": ("from", "value", ("human", "gpt")),
    "messages": ("role", "content", ("user", "assistant")),
}
_MESSAGE_KEYS = {key for speaker, text, _ in _DIALOGUES.values() for key in (speaker, text)}


@dataclass(frozen=True)
class Example:
    """One question of a task.

    text: what is asked, without the image placeholder. answer: the training target and the first reference.
    image: path relative to the folder of the question file; None for a question without a picture.
    references: all accepted answers where there are several. choices: options in the order of their letters.
    size: width and height of the picture in pixels (boxes). turns: later turns of a training conversation.
    category: the subtask that it belongs to, "" where there are none. details: what the dataset says of the question
    beyond what is asked, as a box in pixels or a unit; kept, never asked.
    """

    question_id: str
    text: str
    answer: str
    image: str | None = None
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    turns: tuple[tuple[str, str], ...] = ()
    category: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

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
    n_asked: questions of the whole file, where only some were to be answered (0: all were). n_left_out: questions of
    the dataset that could not be prepared, as those whose picture cannot be had any more; they are in no other number.
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
    n_left_out: int = 0

    @property
    def coverage(self) -> float:
        """The share of the dataset's questions that could be prepared."""
        return 1 - self.n_left_out / ((self.n_asked or self.n_expected) + self.n_left_out)


def read_examples(path: Path) -> list[Example]:
    """Read a question file: a JSON list in LLaVA's format, or JSON lines, whichever the file holds (`parse_example`).

    Raises UserError naming the file, the record and what is wrong with it, for the first five bad records.
    """
    examples: list[Example] = []
    problems: list[str] = []
    for element in iterate_records(Path(path), "a question file"):
        try:
            examples.append(parse_example(element.value))
        except (TypeError, ValueError) as error:
            problems.append(f"{path}, {element.place}: {error}")
            if len(problems) == MOST_PROBLEMS:
                break
    doubled = [name for name, count in Counter(e.question_id for e in examples).items() if count > 1]
    if doubled:
        problems.append(f"{path}: question_id is not unique: {', '.join(doubled[:5])}")
    if problems:
        raise UserError("\n".join(first_few(problems)))
    return examples


def parse_example(record: Any, number: int | None = None, need_answer: bool = True) -> Example:
    """The example in a record of a question file, of ours or from elsewhere.

    LLaVA's names are understood: `answer_bbox` is an answer, `conversations` is a training dialogue, `id` is a
    question_id; so are `messages` of user and assistant, and `images` of one entry. Fields that we do not use (shuffled
    metadata of the published files) are left out.
    number: becomes the question's id, its own is kept in `details`. need_answer: without, a missing answer is "".
    Raises TypeError or ValueError that says what is wrong.
    """
    _require(isinstance(record, dict), "a record", "an object", record)
    record = {**({} if need_answer else {"answer": ""}), **record}
    if media := sorted(name for name in record.keys() & _OTHER_MEDIA if record[name] not in (None, "", [])):
        raise ValueError(f"field '{media[0]}' cannot be used: a question has one picture or none")
    details = record.get("details") or {}
    _require(isinstance(details, dict), "field 'details'", "an object", details)
    if number is not None:
        own = {name: record[name] for name in ("question_id", "id") if record.get(name) is not None}
        record, details = {**record, "question_id": number}, {**own, **details}
    if "id" not in record and "question_id" not in record:
        raise ValueError(
            f"field 'question_id' is missing (data.ids=number numbers the questions); {_fields_of(record)}"
        )
    (text, answer), *later = _turns_of(record)
    image, choices, size = _picture_of(record), _scalars(record, "choices"), record.get("size")
    category = record.get("category")
    _check_placeholder(record, text, image)
    _check_further(record, image)
    if need_answer and not choices:
        _check_options(record, text, answer)
    if len(choices) > MOST_CHOICES:
        raise ValueError(f"field 'choices' has {len(choices)} options; there are letters for {MOST_CHOICES}")
    example = Example(
        question_id=_scalar(record, "question_id" if "question_id" in record else "id"),
        text=text.replace(IMAGE_PLACEHOLDER, "").strip(),
        answer=answer,
        image=image,
        references=_scalars(record, "references"),
        choices=choices,
        size=_size_of(size) if size is not None else None,
        turns=tuple(later),
        category=category if isinstance(category, str) else "",
        details=details,
    )
    check_asked(example)
    return example


def find_picture_name(record: Any) -> str | None:
    """The picture that a record names, without a check of the record; None for none, or for a faulty name."""
    try:
        return _picture_of(record)
    except (AttributeError, TypeError, ValueError):
        return None


def _picture_of(record: Mapping[str, Any]) -> str | None:
    """The picture that `image` or `images` names, as text or as a list of one."""
    names = {}
    for field_ in _PICTURES:
        value = record.get(field_)
        if value is None or value == []:
            continue
        name = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(name, Mapping):
            raise TypeError(
                f"field '{field_}' must be the path of one picture, got an object with {quote(list(name))}: a dataset "
                "holds the picture itself; save it as a file"
            )
        if not (isinstance(name, str) and name.strip() and plain(name) == name and len(name) <= LONGEST_PATH):
            wanted = f"the path of one picture, of at most {LONGEST_PATH} characters"
            raise TypeError(f"field '{field_}' must be {wanted}, got {_show(value)}")
        names[name] = field_
    if len(names) > 1:
        raise ValueError(f"'image' and 'images' name different pictures: {quote(list(names))}")
    return next(iter(names), None)


def _check_placeholder(record: Mapping[str, Any], text: str, image: str | None) -> None:
    """Raises ValueError unless the picture of the question is the only one that the record speaks of."""
    count = text.count(IMAGE_PLACEHOLDER)
    if count > 1:
        raise ValueError(_ONE_PLACEHOLDER)
    if image is not None:
        return
    if count:
        raise ValueError(
            f"the text has {IMAGE_PLACEHOLDER}, but no picture is named: its path belongs into field 'image'; "
            f"{_fields_of(record)}"
        )
    for name, value in _list_pictures(record):
        raise ValueError(
            f"no picture is named in field 'image', but field {quote(name)} ({quote(value)}) seems to name one; rename "
            "it, or remove it"
        )


def _check_further(record: Mapping[str, Any], image: str | None) -> None:
    """Raises ValueError if a field of another format says more than would be asked."""
    for name, value in record.items():
        is_further = _FURTHER_PICTURE.fullmatch(name) and value != image
        if image is not None and is_further and not _is_empty(value):
            raise ValueError(
                f"field {quote(name)} ({quote(value)}) seems to name a further picture: a question has one"
            )
    for name in _BESIDE_DIALOGUES if record.keys() & _DIALOGUES.keys() else ():
        if not _is_empty(record.get(name)):
            raise ValueError(f"field '{name}' would not be asked: write it into the first question, or remove it")


def _check_options(record: Mapping[str, Any], text: str, answer: str) -> None:
    """Raises ValueError if the answer is the letter of an option that the question does not show."""
    named = {name: value for name, value in record.items() if _OPTIONS.fullmatch(name)}
    if isinstance(record.get("A"), str) and isinstance(record.get("B"), str):
        named["A"] = [record["A"], record["B"]]
    for name, value in named.items() if _LETTER.fullmatch(answer.strip()) else ():
        options = [*value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else []
        if any(isinstance(option, str) and option.strip() not in text for option in options):
            raise ValueError(
                f"the options in field '{name}' would not be asked: as a list they belong into field 'choices'"
            )


_ONE_PLACEHOLDER = f"{IMAGE_PLACEHOLDER} must stand once at most, in the first question: a question has one picture"


def check_asked(example: Example) -> None:
    """Raises ValueError if a question or an option still marks the place of a picture, in LLaVA's or another way.

    LLaVA's marker in an answer would be trained as a further picture.
    """
    for answer in (example.answer, *(answer for _, answer in example.turns)):
        if IMAGE_PLACEHOLDER in answer:
            raise ValueError(f"an answer has {IMAGE_PLACEHOLDER}: {quote(answer)}")
    for text in (example.text, *(question for question, _ in example.turns), *example.choices):
        if IMAGE_PLACEHOLDER in text:
            raise ValueError(_ONE_PLACEHOLDER)
        if marker := _FOREIGN_MARKER.search(text):
            raise ValueError(
                f"{quote(marker[0])} would be asked as text: the path of the picture belongs into field 'image', its "
                f"place in the first question is {IMAGE_PLACEHOLDER}"
            )


def _list_pictures(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field of a foreign record, at any depth, that seems to name or hold a picture, with its value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            name = f"{place}.{key}" if place else key
            if _is_empty(inner):
                continue
            if _MEDIUM.search(_CAPITAL.sub("_", key)) or key == "bytes":
                yield name, inner
            elif key not in (_MESSAGE_KEYS if place in _DIALOGUES else _TEXTS):
                yield from _list_pictures(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _list_pictures(inner, place)
    elif isinstance(value, str) and _PICTURE.fullmatch(value.strip()):
        yield place, value


def _is_empty(value: Any) -> bool:
    """Whether a value stands for nothing: false, 0, NaN, or what holds nothing else."""
    if isinstance(value, list):
        return all(map(_is_empty, value))
    return not value or value != value or isinstance(value, str) and value.isspace()


def _fields_of(record: Mapping[str, Any]) -> str:
    return f"its fields are {shorten(', '.join(map(quote, record)), 300)}" if record else "it has no field"


def _require(holds: bool, what: str, wanted: str, value: Any) -> None:
    if not holds:
        raise TypeError(f"{what} must be {wanted}, got {_show(value)}")


def _show(value: Any) -> str:
    """A value as JSON, for a message."""
    is_nan = isinstance(value, float) and math.isnan(value)
    return "NaN, as pandas writes what is missing" if is_nan else shorten(plain(json.dumps(value, ensure_ascii=False)))


def format_scalar(value: Any, what: str, as_printed: bool = False) -> str:
    """A text or a number of a foreign file as text; a whole number has no decimals, as pandas gives it some.

    what: names the value in the message of the TypeError that anything else raises. as_printed: with the decimals.
    """
    if isinstance(value, str):
        return value
    holds = isinstance(value, int) or isinstance(value, float) and math.isfinite(value)
    _require(holds and not isinstance(value, bool), what, "text or a number", value)
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < WHOLE
    return str(int(value) if is_whole and not as_printed else value)


def _scalar(record: Mapping[str, Any], name: str, as_printed: bool = False) -> str:
    if name not in record:
        raise ValueError(f"field '{name}' is missing; {_fields_of(record)}")
    return format_scalar(record[name], f"field '{name}'", as_printed)


def _scalars(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A field that may be missing or null."""
    values = record.get(name)
    if values is None:
        return ()
    _require(isinstance(values, list), f"field '{name}'", "a list of texts or numbers", values)
    return tuple(format_scalar(value, f"an entry of field '{name}'") for value in values)


def _size_of(size: Any) -> tuple[int, int]:
    holds = isinstance(size, list) and len(size) == 2
    if holds:
        holds = all(is_number(side) and 1 <= side <= LARGEST_SIZE and side == int(side) for side in size)
    _require(holds, "field 'size'", "the picture's [width, height] in pixels", size)
    return int(size[0]), int(size[1])


def _turns_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    dialogues = {
        name: _conversation_of(record[name], name, *shape)
        for name, shape in _DIALOGUES.items()
        if record.get(name) is not None
    }
    for name, turns in dialogues.items():
        if record.get("turns") or turns != next(iter(dialogues.values())):
            raise ValueError(f"field '{name}' cannot stand beside another dialogue: keep one; {_fields_of(record)}")
        for field_, said in zip(("text", "answer"), turns[0], strict=True):
            _require_same(record, field_, name, said)
    if dialogues:
        return next(iter(dialogues.values()))
    later = [] if record.get("turns") is None else record["turns"]
    holds = isinstance(later, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in later)
    _require(holds, "field 'turns'", "a list of [question, answer]", later)
    what = "an entry of field 'turns'"
    turns = [
        (format_scalar(question, what, as_printed=True), format_scalar(answer, what)) for question, answer in later
    ]
    return [(_scalar(record, "text", as_printed=True), _answer_of(record)), *turns]


def _require_same(record: Mapping[str, Any], name: str, other: str, wanted: str) -> None:
    """Raises ValueError if a field that may be missing is not what another says, but for spaces and the placeholder."""
    value = record.get(name)
    if value is None or value == "" or value != value:
        return
    texts = [
        "".join(text.replace(IMAGE_PLACEHOLDER, "").split())
        for text in (format_scalar(value, f"field '{name}'", as_printed=name == "text"), wanted)
    ]
    if texts[0] != texts[1]:
        raise ValueError(f"fields '{name}' ({_show(value)}) and '{other}' ({_show(wanted)}) differ: keep one")


def _answer_of(record: Mapping[str, Any]) -> str:
    box = record.get("answer_bbox")
    if isinstance(box, list) and len(box) == 4:
        for side in box:
            format_scalar(side, "an entry of field 'answer_bbox'")
        box = f"[{', '.join(map(str, box))}]"
    if "answer_bbox" in record:
        answer = format_scalar(box, "field 'answer_bbox'")
        if record.get("answer") != record["answer_bbox"]:
            _require_same(record, "answer", "answer_bbox", answer)
        return answer
    if "answer" not in record and (accepted := _scalars(record, "references")):
        return accepted[0]
    return _scalar(record, "answer")


def _conversation_of(said: Any, name: str, speaker: str, text: str, roles: tuple[str, str]) -> list[tuple[str, str]]:
    holds = isinstance(said, list) and all(isinstance(message, Mapping) for message in said)
    _require(holds, f"field '{name}'", "a list of messages", said)
    if [message.get(speaker) for message in said] != [*roles] * (len(said) // 2) or not said:
        speakers = quote([message.get(speaker) for message in said])
        raise ValueError(f"a conversation is {', '.join(roles * 2)}, ...; got {speakers} ('{speaker}' in '{name}')")
    pairs = zip(said[::2], said[1::2], strict=True)
    return [(_scalar(question, text, as_printed=True), _scalar(answer, text)) for question, answer in pairs]


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
    write_atomically(path, "".join(map(format_example, examples)))


def format_example(example: Example) -> str:
    """Format an example as one JSON line."""
    return _plain(example)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as JSON lines, whole or not at all."""
    write_atomically(path, format_predictions(predictions))


def format_predictions(predictions: Iterable[Prediction]) -> str:
    """Format predictions as JSON lines."""
    return "".join(_plain(prediction) for prediction in predictions)


def append_predictions(file: IO[str], predictions: Iterable[Prediction]) -> None:
    """Append predictions to an open file and flush it."""
    file.write(format_predictions(predictions))
    file.flush()


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions; a last line that a kill has cut is dropped.

    Raises UserError naming file and line if any other line is not a prediction.
    """
    # Split at b"\n" alone: an answer may hold U+2028, which str.splitlines would take for a line's end.
    *lines, _cut = require_file(path, "a file of predictions").read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    predictions = []
    for number, line in enumerate(lines, start=1):
        try:
            predictions.append(_build(Prediction, parse_json(line.decode())))
        except (TypeError, ValueError) as error:
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
    try:
        return _build(Score, read_json(path, "a score"))
    except TypeError as error:
        raise UserError(f"{path} is not a score: {error}") from error


def _build(cls: type[R], values: Any) -> R:
    """The record with these values as its fields. Raises TypeError for one that is unknown, missing or misshapen."""
    _require(isinstance(values, Mapping), "a record", "an object", values)
    fields = {field_.name: field_ for field_ in dataclasses.fields(cls)}
    if unknown := [name for name in values if name not in fields]:
        raise TypeError(f"unknown field {quote(unknown[0])}; its fields are {', '.join(fields)}")
    for name, value in values.items():
        wanted, holds = _KINDS[fields[name].type]
        _require(holds(value), f"field '{name}'", wanted, value)
    try:
        return cls(**values)
    except TypeError as error:  # a field without a default is missing
        raise TypeError(str(error).removeprefix(f"{cls.__name__}.__init__() ")) from error


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number that a float can hold."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -FINITE <= value <= FINITE


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _or_null(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _each(holds: Callable[[Any], bool], container: type = dict) -> Callable[[Any], bool]:
    """Whether a value is an object or a list whose values all pass."""

    def test(value: Any) -> bool:
        values = value.values() if isinstance(value, dict) else value
        return isinstance(value, container) and all(map(holds, values))

    return test


# What the fields of records must be, by their types: in words, and as a test.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", _is_text),
    "str | None": ("text or null", _or_null(_is_text)),
    "int": ("a whole number of at least 0", _is_count),
    "float | None": ("a finite number or null", _or_null(is_number)),
    "dict[str, float]": ("an object of finite numbers", _each(is_number)),
    "dict[str, float | None]": ("an object of finite numbers", _each(_or_null(is_number))),
    "dict[str, list[float]]": ("an object of lists of finite numbers", _each(_each(is_number, list))),
    "dict[str, str]": ("an object of texts", _each(_is_text)),
}
