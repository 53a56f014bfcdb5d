"""The search for published question files, which come in two layouts: the Hub's and the published scripts'.

`ScienceQA/test.json` is `Seen_data/ScienceQA/test.json` on the Hub, perhaps below `instructions`, and
`instructions/ScienceQA/test.json` for the scripts; some tasks have different names in the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from data_prep.origin import Download, Origin
from robustmerge.stage.files import expand
from robustmerge.stage.settings import UserError

PREFIXES = ("", "instructions", "Seen_data", "Unseen_data", "instructions/Seen_data", "instructions/Unseen_data")
ALIASES = (("VizWiz", "VizWiz-caption"), ("Flickr30k", "flickr30k-caption"), ("Grounding", "REC"))
QUESTION_FILES = Origin(
    "MM-MergeBench, the authors' question files",
    "none stated; the pictures have those of their datasets",
    (
        Download(
            "instructions/{Seen_data,Unseen_data}/<task>/*.json",
            "https://huggingface.co/datasets/AuroraZengfh/MM-MergeBench",
            "size not known",
            hub="AuroraZengfh/MM-MergeBench",
        ),
    ),
    "all of it: names of files, ids, wordings",
)
ADVICE = """The question files are on the Hub; fetch=true fetches them, and says where pictures and owners' files are:
bash scripts/prepare.sh benchmark=mm_mergebench raw=FOLDER fetch=true
What belongs where in FOLDER: docs/data.md.
Give a file of another name by its whole path (KEY=/PATH); leave one out with KEY=null."""
MOST_SHOWN = 12


def find_published(folders: Sequence[Path], name: str, key: str) -> Path:
    """Find the one file called `name` in the folders of a collection; an absolute path is returned as it is.

    name: a path relative to the collection; * and ? are wildcards, and neither case nor the name by which a task's
    folder goes matters. key: of the setting, for messages.
    Raises UserError, listing what the folder holds, if there is no such file or several that differ.
    """
    if expand(name).is_absolute():
        return expand(name)
    paths = [(*Path(prefix).parts, *names) for prefix in PREFIXES for names in _spellings(name)]
    matches = [file.resolve() for folder in folders for parts in paths for file in _match(folder, parts)]
    files = [file for file in dict.fromkeys(matches) if file.is_file()]
    if len(files) > 1 and len({file.read_bytes() for file in files}) > 1:
        lines = "\n".join(f"  {file}" for file in files[:MOST_SHOWN])
        raise UserError(f"{name} is several files that differ; say which one with {key}=/PATH:\n{lines}")
    if not files:
        raise UserError(_describe_missing(folders, name, key))
    return files[0]


def _spellings(name: str) -> list[tuple[str, ...]]:
    """Every spelling of a path, as its parts: one for each name that its task's folder goes by."""
    first, *rest = Path(name).parts
    aliases = next((names for names in ALIASES if first.casefold() in map(str.casefold, names)), (first,))
    return [(alias, *rest) for alias in aliases] if rest else [(first,)]


def _match(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """List the paths under a folder that match the parts, ignoring case; without parts the folder itself."""
    if not parts:
        yield folder
        return
    first, *rest = parts
    for entry in _entries(folder):
        if fnmatchcase(entry.name.casefold(), first.casefold()):
            yield from _match(entry, rest)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _describe_missing(folders: Sequence[Path], name: str, key: str) -> str:
    """The message for a file that no folder has, with what is there instead."""
    roots = [root for folder in folders for prefix in PREFIXES for root in _match(folder, Path(prefix).parts)]
    siblings = [path for root in roots for parts in _spellings(name) if parts[1:] for path in _match(root, parts[:-1])]
    # The contents of the task's folder are nearest to what was meant; without such a folder, the whole collection.
    entries = {entry for path in siblings or roots for entry in _entries(path)}
    names = sorted(f"{entry}/" if entry.is_dir() else str(entry) for entry in entries)
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    nothing = f"there is no folder {' or '.join(absent)}" if absent else "it is empty"
    contents = f"there is {', '.join(names[:MOST_SHOWN])}{more}" if names else nothing
    return f"no {name} in {' or '.join(map(str, folders))}, nor below {', '.join(PREFIXES[1:4])}; {contents} ({key})"
