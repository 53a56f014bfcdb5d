"""Upload an adapter folder to a repository of the Hub, after showing what is uploaded and asking."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.addresses import require_complete
from pipeline.plan import Plan, make_command
from pipeline.sources import SOURCE_FILES
from pipeline.sweep import make_plan_with
from pipeline.terminal import confirm, format_size
from pipeline.tools.push import hub
from pipeline.tools.push.card import REPOSITORY, Card
from pipeline.tools.push.files import UploadedFile, collect_files
from robustmerge.stage.address import UNFINISHED, is_locked
from robustmerge.stage.files import expand
from robustmerge.stage.settings import ConfigError, Problem, UserError
from robustmerge.stage.tables import format_columns

LARGE = 2e9  # bytes that are not uploaded without large=true


@dataclass(frozen=True)
class PushRequest:
    """The keys of push.py. base: what the Hub calls the base; update: into a repository that has files."""

    repo: str | None
    folder: str | None = None
    base: str | None = None
    private: bool = True
    update: bool = False
    large: bool = False
    yes: bool = False

    def __post_init__(self) -> None:
        for key, name in (("repo", str(self.repo)), ("base", self.base)):
            if name is not None and not REPOSITORY.fullmatch(name):
                raise ConfigError(Problem(f"a repository of the Hub is written user/name, got {name}", key))


def push(point: Mapping[str, Any]) -> None:
    """Show, ask, upload. Raises UserError, before any upload, for what cannot or should not be uploaded."""
    plan, request = make_plan_with(PushRequest, point)
    folder, repo = find_folder(plan, request), str(request.repo)
    files, card, left_out = collect_files(folder, request.base)
    size = sum(file.size for file in files)
    print(format_files(files, left_out, size))
    print("\n".join(list_notes(card, files, size)))
    if size > LARGE and not request.large:
        raise UserError(f"{format_size(size)} is much to upload: large=true does it{_advise_adapter(files)}")
    if not request.yes and not sys.stdin.isatty():
        raise UserError("push.py asks before it uploads, and there is no terminal to answer; add yes=true")
    api = hub.log_in()
    repository = hub.find_repository(api, repo)
    if repository.files and not request.update:
        raise UserError(f"{repository.url} exists and has files; take another repo=, or add to it with update=true")
    kind = "private" if (request.private if repository.is_new else repository.private) else "PUBLIC"
    new = "a new" if repository.is_new else "an existing"
    print(f"to {repository.url}, {new} {kind} repository, as {repository.user}")
    if not request.yes and not confirm(f"upload these {len(files)} files ({format_size(size)})?"):
        print("nothing uploaded")
        return
    commit = hub.upload(api, repo, request.private if repository.is_new else None, files, card.title)
    print(f"uploaded: {commit.url}\nmerge it elsewhere as 'experts=[{repo}@{commit.revision}]'")


def find_folder(plan: Plan, request: PushRequest) -> Path:
    """The finished folder that `source` or `folder` names. Raises UserError if it is not there or not finished."""
    name = plan.config.source
    if (name is None) == (request.folder is None):
        raise UserError("give one of source=NAME (as merged/robustmerge) and folder=FOLDER")
    if request.folder is not None:
        folder = expand(request.folder).resolve()
    else:
        source = plan.find_source(name)
        if source.kind == "zero_shot":
            raise UserError("zero_shot is the base alone; source= names an adapter: an expert, a merge, a folder")
        require_complete([source.address], "result is", partial(make_command, source))
        folder = source.address.path
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (folder / UNFINISHED).exists() or is_locked(folder):
        raise UserError(f"{folder} is not finished yet; run the command that makes it to its end")
    if not any((folder / name).is_file() for name in (*SOURCE_FILES, "config.json")):
        names = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise UserError(f"{folder} is no adapter: it has neither {' nor '.join(SOURCE_FILES)}; it has {names}")
    return folder


def format_files(files: list[UploadedFile], left_out: list[str], size: int) -> str:
    """Format the files to upload as a table."""
    rows = [(file.name, format_size(file.size), file.note) for file in files]
    _, *lines = format_columns(("", "", ""), rows, text=(0, 2))
    lines = [f"  {line}" for line in [*lines, f"{len(files)} files, {format_size(size)}"]]
    return "\n".join(["to be uploaded:", *lines, *([f"left out: {', '.join(left_out)}"] if left_out else [])])


def list_notes(card: Card, files: list[UploadedFile], size: int) -> list[str]:
    """Notes for the user to read before confirming."""
    notes = []
    if card.lacks:
        notes.append(f"the card does not say: {', '.join(card.lacks)}")
    if card.base is None or not REPOSITORY.fullmatch(card.base):
        notes.append(f"nobody else can find the base model '{card.base}'; give its name on the Hub, base=user/name")
    if any(file.name == "delta_config.json" for file in files):
        notes.append(f"these are dense updates, {format_size(size)}{_advise_adapter(files)}")
    return [f"note: {note}" for note in notes]


def _advise_adapter(files: list[UploadedFile]) -> str:
    if not any(file.name == "delta_config.json" for file in files):
        return ""
    return (
        "; merged again with merge.out.format=adapter merge.out.rank=16 they are an adapter, some hundred times smaller"
    )
