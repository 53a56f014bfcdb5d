"""An adapter folder to a repository of the Hub: what is uploaded is shown, and nothing is before one has agreed.

What only this machine knows (its name, its folders) is left out of the copies that are uploaded.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.addresses import require
from pipeline.plan import Plan, make_command
from pipeline.sources import SOURCE_FILES
from pipeline.sweep import make_plan_with
from pipeline.tools.push import upload
from pipeline.tools.push.card import Card, make_card
from pipeline.tools.push.upload import Item
from robustmerge.stage.address import UNFINISHED, is_locked, read_manifest
from robustmerge.stage.files import read_json, sha256_of
from robustmerge.stage.settings import ConfigError, Problem, UserError

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
LARGE = 2e9  # bytes that are not uploaded without large=true
UPLOADED = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken")
PICKLES = re.compile(r"(adapter_model|non_lora_trainables|pytorch_model.*)\.bin")  # weights; not training_args.bin
RECORDS = ("conversion.json", "training.json")  # how an adapter was made, beside the manifest
WRITTEN = ("README.md", "manifest.json", *SOURCE_FILES, *RECORDS)  # of these a copy is made
BASE = "base_model_name_or_path"


@dataclass(frozen=True)
class Request:
    """The keys of push.py. base: what the Hub calls the base; update: into a repository that has files."""

    repo: str | None = None
    folder: str | None = None
    base: str | None = None
    private: bool = True
    update: bool = False
    large: bool = False
    yes: bool = False

    def __post_init__(self) -> None:
        if self.repo is None or not REPOSITORY.fullmatch(self.repo):
            raise ConfigError(Problem(f"a repository of the Hub is written user/name, got {self.repo}", "repo"))
        if self.base is not None and not REPOSITORY.fullmatch(self.base):
            raise ConfigError(Problem(f"a base model of the Hub is written user/name, got {self.base}", "base"))


def push(point: Mapping[str, Any]) -> None:
    """Show, ask, upload. Raises UserError for what cannot or should not be uploaded, before anything is."""
    plan, request = make_plan_with(Request, point)
    folder = find_folder(plan, request)
    items, card, left_out = collect(folder, request.base)
    size = sum(item.size for item in items)
    print(show(items, left_out, size))
    print("\n".join(notes_of(card, items, size)))
    if size > LARGE and not request.large:
        raise UserError(f"{_size(size)} is much to upload: large=true does it{_smaller(items)}")
    if not request.yes and not sys.stdin.isatty():
        raise UserError("push.py asks before it uploads, and there is no terminal to answer; add yes=true")
    api = upload.log_in()
    place = upload.look_up(api, request.repo)
    if place.files and not request.update:
        raise UserError(f"{place.url} exists and has files; take another repo=, or add to it with update=true")
    kind = "private" if (request.private if place.is_new else place.private) else "PUBLIC"
    print(f"to {place.url}, {'a new' if place.is_new else 'an existing'} {kind} repository, as {place.user}")
    if not request.yes and not _agreed(f"upload these {len(items)} files ({_size(size)})? [y/N] "):
        print("nothing uploaded")
        return
    commit = upload.upload(api, request.repo, request.private if place.is_new else None, items, card.title)
    print(f"uploaded: {commit.url}\nmerge it elsewhere as 'experts=[{request.repo}@{commit.revision}]'")


def find_folder(plan: Plan, request: Request) -> Path:
    """The finished folder that `source` or `folder` names. Raises UserError if it is not there or not finished."""
    named = plan.config.source
    if (named is None) == (request.folder is None):
        raise UserError("give one of source=NAME (as merged/robustmerge) and folder=FOLDER")
    if named is None:
        folder = Path(request.folder).expanduser().resolve()
    else:
        source = plan.find_source(named)
        if source.kind == "zero_shot":
            raise UserError("zero_shot is the base alone; source= names an adapter: an expert, a merge, a folder")
        require([source.address], "result is", make_command(source))
        folder = source.address.path
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if (folder / UNFINISHED).exists() or is_locked(folder):
        raise UserError(f"{folder} is not finished yet; run the command that makes it to its end")
    if not any((folder / name).is_file() for name in (*SOURCE_FILES, "config.json")):
        listed = ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"
        raise UserError(f"{folder} is no adapter: it has neither {' nor '.join(SOURCE_FILES)}; it has {listed}")
    return folder


def collect(folder: Path, base: str | None) -> tuple[list[Item], Card, list[str]]:
    """What is uploaded, the card of it, and the names of what is left out.

    Raises UserError if a file is not what the manifest says, or there is no weight to upload.
    """
    manifest = read_manifest(folder / "manifest.json") if (folder / "manifest.json").is_file() else None
    _refuse_changed(folder, manifest)
    named = next((name for name in SOURCE_FILES if (folder / name).is_file()), None)
    config = read_json(folder / named, "a JSON file of an adapter") if named else {}
    base = base or _public(config.get(BASE))
    card = make_card(folder, manifest, base)
    items = [Item("README.md", card.text.encode(), f"the card; it says: {', '.join(card.says)}")]
    if named:
        items.append(Item(named, _dump({**_public(config), BASE: base}), f"base model: {base}"))
    if manifest is not None:
        record = {key: value for key, value in manifest["record"].items() if key != "host"}
        items.append(
            Item("manifest.json", _dump(_public({**manifest, "record": record})), "without this machine's name")
        )
    records = [name for name in RECORDS if (folder / name).is_file()]
    items += [Item(name, _dump(_public(read_json(folder / name, "a JSON file of an adapter")))) for name in records]
    found = sorted(file for file in folder.iterdir() if file.name not in WRITTEN)
    taken = [file for file in found if file.is_file() and _is_uploaded(file.name)]
    if not any(file.suffix in (".safetensors", ".bin") for file in taken):
        raise UserError(f"{folder} has no weights to upload: neither .safetensors nor .bin")
    return [*items, *(Item(file.name, file) for file in taken)], card, [f.name for f in found if f not in taken]


def _is_uploaded(name: str) -> bool:
    return not name.startswith(".") and (name.endswith(UPLOADED) or PICKLES.fullmatch(name) is not None)


def _refuse_changed(folder: Path, manifest: Mapping[str, Any] | None) -> None:
    """The card may be edited by hand; nothing else may."""
    for name, digest in (manifest or {"record": {}})["record"].get("outputs", {}).items():
        kept = name != "README.md" and _is_uploaded(name) and (folder / name).is_file()
        if kept and sha256_of(folder / name) != digest:
            raise UserError(f"{folder / name} was changed after it was made: manifest.json has another sha256 of it")


def _public(value: Any) -> Any:
    """The value with the last part of every path of this machine in the place of the path."""
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def show(items: list[Item], left_out: list[str], size: int) -> str:
    """What would be uploaded, as a table."""
    widest = max(len(item.name) for item in items)
    lines = [f"  {item.name:<{widest}}  {_size(item.size):>9}  {item.note}".rstrip() for item in items]
    lines += [f"  {len(items)} files, {_size(size)}"]
    return "\n".join(["to be uploaded:", *lines, *([f"left out: {', '.join(left_out)}"] if left_out else [])])


def notes_of(card: Card, items: list[Item], size: int) -> list[str]:
    """What one should know before agreeing."""
    notes = []
    if card.lacks:
        notes.append(f"the card does not say: {', '.join(card.lacks)}")
    if card.base is None or not REPOSITORY.fullmatch(card.base):
        notes.append(f"nobody else can find the base model '{card.base}'; give its name on the Hub, base=user/name")
    if any(item.name == "delta_config.json" for item in items):
        notes.append(f"these are dense updates, {_size(size)}{_smaller(items)}")
    return [f"note: {note}" for note in notes]


def _smaller(items: list[Item]) -> str:
    if not any(item.name == "delta_config.json" for item in items):
        return ""
    return (
        "; merged again with merge.out.format=adapter merge.out.rank=16 they are an adapter, some hundred times smaller"
    )


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
