"""Where a published question file lies: the Hub's folders and those of the published scripts hold the same files.

`ScienceQA/test.json` is `Seen_data/ScienceQA/test.json` on the Hub, perhaps below `instructions`, and
`instructions/ScienceQA/test.json` for the scripts; some tasks are called differently in the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from robustmerge.stage.settings import UserError

PREFIXES = ("", "instructions", "Seen_data", "Unseen_data", "instructions/Seen_data", "instructions/Unseen_data")
ALIASES = (("VizWiz", "VizWiz-caption"), ("Flickr30k", "flickr30k-caption"), ("Grounding", "REC"))
ADVICE = """The question files are on the Hub:
hf download AuroraZengfh/MM-MergeBench --repo-type dataset --local-dir FOLDER
then paths.mm_mergebench=FOLDER. What comes from elsewhere, and where it is to lie: docs/evaluation.md.
A file of another name is given by its whole path (KEY=/PATH), one that you do without is left out (KEY=null)."""
SHOWN = 12


def find_published(folders: Sequence[Path], name: str, key: str) -> Path:
    """The one file in `folders` that `name` means, a path that is relative to a collection (or absolute: itself).

    Case does not matter, nor which of its names a task's folder has; * and ? in the name stand for anything.
    key: of the setting, for the messages. Raises UserError if there is no such file, with what is there instead, or
    several that differ.
    """
    if Path(name).expanduser().is_absolute():
        return Path(name).expanduser()
    paths = [(*Path(prefix).parts, *names) for prefix in PREFIXES for names in _spellings(name)]
    found = [file.resolve() for folder in folders for parts in paths for file in _match(folder, parts)]
    found = [file for file in dict.fromkeys(found) if file.is_file()]
    if len(found) > 1 and len({file.read_bytes() for file in found}) > 1:
        shown = "\n".join(f"  {file}" for file in found[:SHOWN])
        raise UserError(f"{name} is several files that differ; say which one with {key}=/PATH:\n{shown}")
    if not found:
        raise UserError(_not_found(folders, name, key))
    return found[0]


def _spellings(name: str) -> list[tuple[str, ...]]:
    """The path in parts, under each name that its folder goes by."""
    first, *rest = Path(name).parts
    known = next((names for names in ALIASES if first.casefold() in map(str.casefold, names)), (first,))
    return [(one, *rest) for one in known] if rest else [(first,)]


def _match(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """What lies under a folder at a path that fits the parts, whatever its case; without parts the folder itself."""
    if not parts:
        yield folder
        return
    first, *rest = parts
    for entry in _entries(folder):
        if fnmatchcase(entry.name.casefold(), first.casefold()):
            yield from _match(entry, rest)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _not_found(folders: Sequence[Path], name: str, key: str) -> str:
    places = [place for folder in folders for prefix in PREFIXES for place in _match(folder, Path(prefix).parts)]
    like = [near for place in places for names in _spellings(name) if names[1:] for near in _match(place, names[:-1])]
    # What is in the task's folder is nearest to what was meant; without such a folder, what there is at all.
    near = {entry for place in like or places for entry in _entries(place)}
    listed = sorted(f"{entry}/" if entry.is_dir() else str(entry) for entry in near)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    gone = [str(folder) for folder in folders if not folder.is_dir()]
    nothing = f"there is no folder {' or '.join(gone)}" if gone else "it is empty"
    there = f"there is {', '.join(listed[:SHOWN])}{more}" if listed else nothing
    return f"no {name} in {' or '.join(map(str, folders))}, nor below {', '.join(PREFIXES[1:4])}; {there} ({key})"
