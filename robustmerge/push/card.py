"""The card of an uploaded adapter: the README of its folder, completed from its manifest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robustmerge.formats.output import how_to_load
from robustmerge.stage.address import get_mapping
from robustmerge.stage.files import read_text
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import one_line

STATEMENTS = ("method", "settings", "experts", "base", "commit")  # what a reader needs to make it again
SECTION = "## How it was made"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FRONT = re.compile(r"---\n(.*?)---\n", re.S)


@dataclass(frozen=True)
class Card:
    """A README. says, lacks: the STATEMENTS that it makes and those it lacks; base: the base model that it names."""

    text: str
    title: str
    base: str | None
    says: tuple[str, ...]
    lacks: tuple[str, ...]


def make_card(folder: Path, manifest: Mapping[str, Any] | None, base: str | None) -> Card:
    """The card with the base as the Hub knows it, and a section made of the manifest.

    Raises UserError if there is neither a README.md nor a manifest to make one of.
    """
    readme = folder / "README.md"
    if readme.is_file():
        text = read_text(readme, "the card of an adapter")
    elif manifest is not None and manifest["identity"].get("stage") == "train":
        text = _card_of_training(folder, manifest)
    else:
        raise UserError(f"{folder} has no README.md, and an upload needs a card: write what it is and how it was made")
    text = _name_base(text.partition(SECTION)[0].rstrip() + "\n", base)
    if manifest is not None:
        text += f"\n{_how_it_was_made(manifest)}"
    heading = re.search(r"^# (.+)$", FRONT.sub("", text, count=1), re.M)
    says = tuple(what for what in STATEMENTS if _says(text, what))
    title = heading[1] if heading else folder.name
    return Card(text, title, base, says, tuple(what for what in STATEMENTS if what not in says))


def _says(text: str, what: str) -> bool:
    """Whether a line of the card makes a statement: `Method: ...`, `Base model: ...`."""
    return re.search(rf"^(\W*){what}\b", FRONT.sub("", text, count=1), re.M | re.I) is not None


def _card_of_training(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Trained adapters have no README of their own."""
    names = get_mapping(manifest["identity"], "settings").get("tasks")
    tasks = one_line(", ".join(map(str, names)) if isinstance(names, list) and names else folder.name)
    return (
        "---\nlibrary_name: peft\ntags: [lora]\n---\n\n"
        f"# LoRA expert of {tasks}\n\n"
        f"Method: LoRA fine-tuning.\nExperts: this one, of {tasks}.\nBase model: `?`.\n\n"
        f"```python\n{how_to_load('adapter')}```\n"
    )


def _name_base(text: str, base: str | None) -> str:
    """The base in the line `Base model:`, and, where it is one of the Hub's, among the front matter."""
    if base is not None:
        text = re.sub(r"^Base model: `[^`]*`", lambda _: f"Base model: `{one_line(base)}`", text, flags=re.M)
    front = FRONT.match(text)
    fields, rest = (front[1], text[front.end() :]) if front else ("tags: [model-merging]\n", f"\n{text}")
    if base and REPOSITORY.fullmatch(base) and not re.search(r"^base_model:", fields, re.M):
        fields += f"base_model: {base}\n"
    return f"---\n{fields}---\n{rest}"


def _how_it_was_made(manifest: Mapping[str, Any]) -> str:
    """The section on how the adapter was made: commit, versions, inputs and settings from the manifest."""
    identity, record = manifest["identity"], manifest["record"]
    commit = record.get("commit")
    lines = [f"Commit: `{commit or 'not known'}`{' with changes' if record.get('dirty') else ''}."]
    if versions := get_mapping(record, "versions"):
        lines.append(f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.")
    if inputs := get_mapping(identity, "inputs"):
        lines.append(f"Inputs: {', '.join(f'{name} `{str(digest)[:8]}`' for name, digest in sorted(inputs.items()))}.")
    lines = [one_line(line) for line in lines]
    settings = yaml.safe_dump(get_mapping(identity, "settings"), sort_keys=True, allow_unicode=True)
    return f"{SECTION}\n\n" + "\n".join(lines) + f"\n\nSettings:\n\n```yaml\n{settings}```\n"
