"""The files of an upload: texts without this machine's name and folders, weights as they are.

A file that was changed after it was written is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from robustmerge.formats.adapter_config import SOURCE_FILES
from robustmerge.push.card import Card, make_card
from robustmerge.stage.address import read_manifest
from robustmerge.stage.files import read_json, sha256_of
from robustmerge.stage.settings import UserError

UPLOADED = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken")
PICKLES = re.compile(r"(adapter_model|non_lora_trainables|pytorch_model.*)\.bin")  # weights; not training_args.bin
RECORDS = ("conversion.json", "training.json", "config.json", "tokenizer_config.json")  # may name folders
REWRITTEN = ("README.md", "manifest.json", *SOURCE_FILES, *RECORDS)  # of these a copy is made
BASE = "base_model_name_or_path"


@dataclass(frozen=True)
class UploadedFile:
    """One file of an upload: its bytes, or where they are. note: what is shown of it."""

    name: str
    content: bytes | Path
    note: str = ""

    @cached_property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def collect_files(folder: Path, base: str | None) -> tuple[list[UploadedFile], Card, list[str]]:
    """Collect the files to upload, their card, and the names of those left out.

    Raises UserError if a file is not what the manifest says, if there is no weight to upload, or if the adapter is for
    the base beside it.
    """
    if (folder / "base").is_dir():
        raise UserError(
            f"the adapter in {folder} is for the base beside it, which holds what the experts trained in full: push "
            f"{folder / 'base'} first, as a repository of its own, move it away, and name it here as the base"
        )
    manifest = read_manifest(folder / "manifest.json") if (folder / "manifest.json").is_file() else None
    _refuse_changed(folder, manifest)
    config_name = next((name for name in SOURCE_FILES if (folder / name).is_file()), None)
    config = read_json(folder / config_name, "a JSON file of an adapter") if config_name else {}
    base = base or _without_folders(config.get(BASE))
    card = make_card(folder, _without_folders(manifest), base)
    files = [UploadedFile("README.md", card.text.encode(), f"the card; it says: {', '.join(card.says)}")]
    if config_name:
        content = _dump({**_without_folders(config), BASE: base})
        files.append(UploadedFile(config_name, content, f"base model: {base}"))
    if manifest is not None:
        record = {key: value for key, value in manifest["record"].items() if key != "host"}
        content = _dump(_without_folders({**manifest, "record": record}))
        files.append(UploadedFile("manifest.json", content, "without this machine's name"))
    records = [name for name in RECORDS if (folder / name).is_file()]
    files += [
        UploadedFile(name, _dump(_without_folders(read_json(folder / name, "a JSON file of an adapter"))))
        for name in records
    ]
    others = sorted(file for file in folder.iterdir() if file.name not in REWRITTEN)
    as_they_are = [file for file in others if file.is_file() and _is_uploaded(file.name)]
    if not any(file.suffix in (".safetensors", ".bin") for file in as_they_are):
        raise UserError(f"{folder} has no weights to upload: neither .safetensors nor .bin")
    files += [UploadedFile(file.name, file) for file in as_they_are]
    return files, card, [file.name for file in others if file not in as_they_are]


def _is_uploaded(name: str) -> bool:
    return not name.startswith(".") and (name.endswith(UPLOADED) or PICKLES.fullmatch(name) is not None)


def _refuse_changed(folder: Path, manifest: Mapping[str, Any] | None) -> None:
    """Raises UserError for a file other than the card that was edited after it was written."""
    for name, digest in (manifest or {"record": {}})["record"].get("outputs", {}).items():
        kept = name != "README.md" and _is_uploaded(name) and (folder / name).is_file()
        if kept and sha256_of(folder / name) != digest:
            raise UserError(f"{folder / name} was changed after it was made: manifest.json has another sha256 of it")


def _without_folders(value: Any) -> Any:
    """Replace every path of this machine in the value by its last part."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute()):
        return Path(value).name
    return value


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
