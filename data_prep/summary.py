"""What a prepared split holds: its rows, prompts, answers and pictures, counted in one pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from statistics import median

from robustmerge.stage.address import read_manifest
from robustmerge.stage.files import cached_sha256
from robustmerge.stage.json_stream import iterate_records
from robustmerge.stage.records import Example, parse_example

MOST_TEXTS = 50_000  # different prompts or answers that are counted
OTHERS = "(others)"  # as which further ones are counted together


@dataclass
class Summary:
    """A split in numbers.

    rows: those that are in it; rejected: those that cannot be used, by reason; serving_as_val: those cut from train;
    openings: how often two words begin a question; endings: how often its last line occurs, where that is not the whole
    question; references: how many questions accept so many answers; sizes: width and height of every picture; sha256:
    of the split's file.
    """

    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    serving_as_val: int = 0
    without_picture: int = 0
    dialogues: int = 0
    openings: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    references: Counter[int] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    sha256: str = ""

    @property
    def suffixes(self) -> Counter[str]:
        """The formats of the pictures, by the endings of their names."""
        return Counter(PurePosixPath(name).suffix.lower() or "(no ending)" for name in self.sizes)

    @property
    def left_out(self) -> int:
        """The rows that cannot be used."""
        return sum(self.rejected.values())

    @property
    def found(self) -> int:
        """The rows that its file or release has: used, left out, or serving as val."""
        return self.rows + self.left_out + self.serving_as_val

    @property
    def coverage(self) -> float:
        """The share of the rows that can be used."""
        return 1 - self.left_out / self.found if self.found else 1.0

    def describe_sizes(self) -> str:
        """The pictures' sizes in words, as far as their rows say them."""
        known = [size for size in self.sizes.values() if size is not None]
        if not known:
            return "sizes not recorded" if self.sizes else "no pictures"
        longer = sorted(map(max, known))
        (common, count), *_ = Counter(known).most_common(1)
        sides = f"longer side {longer[0]} to {longer[-1]} pixels, in half of them at most {median(longer):g}"
        wide = sum(1 for width, height in known if width > height)
        return f"{sides}; {wide / len(known):.0%} wide; {count / len(known):.0%} have {common[0]} x {common[1]}"

    def _add(self, example: Example) -> None:
        self.rows += 1
        head, _, ending = example.text.rpartition("\n")
        _count(self.openings, " ".join(example.text.split()[:2]))
        _count(self.endings, ending if head else "")
        _count(self.answers, example.answer)
        self.references[len(example.accepted)] += 1
        self.dialogues += bool(example.turns)
        if example.category:
            _count(self.categories, example.category)
        if example.image is None:
            self.without_picture += 1
        else:
            self.sizes[example.image] = example.size


def _count(counts: Counter[str], text: str) -> None:
    counts[text if len(counts) < MOST_TEXTS or text in counts else OTHERS] += 1


def summarise(folder: Path, split: str) -> Summary:
    """Count what is in a split of a task's prepared folder. Raises UserError if it is not complete."""
    file = folder / f"{split}.jsonl"
    record = read_manifest(folder / "manifest.json")["record"]
    val = record.get("val_cut_from_train", []) if split == "train" else []
    rejected = record.get("rejected", {}).get(split, {})
    summary = Summary(rejected=rejected, serving_as_val=len(val), sha256=cached_sha256(file))
    for element in iterate_records(file, "a prepared split"):
        summary._add(parse_example(element.value))
    return summary
