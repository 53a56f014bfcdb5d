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

MOST_TEXTS = 50_000  # different prompts or answers that are counted; later ones are counted together


@dataclass
class Summary:
    """A split in numbers.

    rows: those that can be used; rejected: the others, by reason; openings: how often two words begin a question;
    endings: how often its last line occurs, where that is not the whole question; references: how many questions accept
    so many answers; sizes: width and height of every picture; sha256: of the split's file.
    """

    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
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
    def coverage(self) -> float:
        """The share of the rows that can be used."""
        total = self.rows + sum(self.rejected.values())
        return self.rows / total if total else 1.0

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
    counts[text if len(counts) < MOST_TEXTS or text in counts else "(others)"] += 1


def summarise(folder: Path, split: str) -> Summary:
    """Count what is in a split of a task's prepared folder. Raises UserError if it is not complete."""
    file = folder / f"{split}.jsonl"
    rejected = read_manifest(folder / "manifest.json")["record"].get("rejected", {}).get(split, {})
    summary = Summary(rejected=rejected, sha256=cached_sha256(file))
    for element in iterate_records(file, "a prepared split"):
        summary._add(parse_example(element.value))
    return summary
