"""Upload an adapter folder to a repository of the Hub, after showing what is uploaded and asking."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustmerge.formats.adapter_config import DELTA_CONFIG, SOURCE_FILES
from robustmerge.push import hub
from robustmerge.push.card import REPOSITORY, Card
from robustmerge.push.files import UploadedFile, collect_files
from robustmerge.stage.address import UNFINISHED, is_locked
from robustmerge.stage.settings import ConfigError, Problem, UserError
from robustmerge.stage.tables import format_columns, format_size
from robustmerge.stage.terminal import confirm

LARGE = 2e9  # bytes that are not uploaded unless asked for

Spell = Callable[[str, str], str]  # how a user types an option: its key, its value


@dataclass(frozen=True)
class Upload:
    """The settings of an upload. repo: where to; base: what the Hub calls the base; private: of a new repository.

    update: also into a repository that has files; large: also more than LARGE; yes: without asking.
    """

    repo: str | None
    base: str | None = None
    private: bool = True
    update: bool = False
    large: bool = False
    yes: bool = False

    def __post_init__(self) -> None:
        for key, name in (("repo", str(self.repo)), ("base", self.base)):
            if name is not None and not REPOSITORY.fullmatch(name):
                raise ConfigError(Problem(f"a repository of the Hub is written user/name, got {name}", key))


def upload_folder(folder: Path, settings: Upload, spell: Spell) -> str | None:
    """Show, ask, upload; returns `user/name@revision`, or None if the answer is no.

    Raises UserError, before any upload, for what cannot or should not be uploaded.
    """
    check_folder(folder)
    repo = str(settings.repo)
    files, card, left_out = collect_files(folder, settings.base)
    size = sum(file.size for file in files)
    print(_format_files(files, left_out, size))
    print("\n".join(_list_notes(card, files, size, spell)))
    if size > LARGE and not settings.large:
        raise UserError(f"{format_size(size)} is much to upload: {spell('large', 'true')} does it{_advise(files)}")
    if not settings.yes and not sys.stdin.isatty():
        raise UserError(f"an upload asks first, and there is no terminal to answer; add {spell('yes', 'true')}")
    api = hub.log_in()
    repository = hub.find_repository(api, repo)
    update = spell("update", "true")
    if repository.files and not settings.update:
        raise UserError(f"{repository.url} exists and has files; take another one, or add to it with {update}")
    kind = "private" if (settings.private if repository.is_new else repository.private) else "PUBLIC"
    new = "a new" if repository.is_new else "an existing"
    print(f"to {repository.url}, {new} {kind} repository, as {repository.user}")
    if not settings.yes and not confirm(f"upload these {len(files)} files ({format_size(size)})?"):
        print("nothing uploaded")
        return None
    commit = hub.upload(api, repo, settings.private if repository.is_new else None, files, card.title)
    print(f"uploaded: {commit.url}")
    return f"{repo}@{commit.revision}"


def check_folder(folder: Path) -> None:
    """Raises UserError unless the folder is there, finished, and one of an adapter, dense updates or a model."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (folder / UNFINISHED).exists() or is_locked(folder):
        raise UserError(f"{folder} is not finished yet; run the command that makes it to its end")
    if not any((folder / name).is_file() for name in (*SOURCE_FILES, "config.json")):
        names = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise UserError(f"{folder} is no adapter: it has neither {' nor '.join(SOURCE_FILES)}; it has {names}")


def _format_files(files: Sequence[UploadedFile], left_out: Sequence[str], size: int) -> str:
    """Format the files to upload as a table."""
    rows = [(file.name, format_size(file.size), file.note) for file in files]
    _, *lines = format_columns(("", "", ""), rows, text=(0, 2))
    lines = [f"  {line}" for line in [*lines, f"{len(files)} files, {format_size(size)}"]]
    return "\n".join(["to be uploaded:", *lines, *([f"left out: {', '.join(left_out)}"] if left_out else [])])


def _list_notes(card: Card, files: Sequence[UploadedFile], size: int, spell: Spell) -> list[str]:
    """Notes for the user to read before confirming."""
    notes = []
    if card.lacks:
        notes.append(f"the card does not say: {', '.join(card.lacks)}")
    if card.base is None or not REPOSITORY.fullmatch(card.base):
        way = f"give its name on the Hub, {spell('base', 'user/name')}"
        notes.append(f"nobody else can find the base model '{card.base}'; {way}")
    if any(file.name == DELTA_CONFIG for file in files):
        notes.append(f"these are dense updates, {format_size(size)}{_advise(files)}")
    return [f"note: {note}" for note in notes]


def _advise(files: Sequence[UploadedFile]) -> str:
    """What to do instead of uploading dense updates; nothing for other files."""
    if not any(file.name == DELTA_CONFIG for file in files):
        return ""
    return (
        "; merged again with merge.out.format=adapter merge.out.rank=16 they are an adapter, some hundred times smaller"
    )
