"""Where an adapter is: a folder on this machine, or a repository of the Hugging Face Hub.

Importing this loads neither torch nor the Hub's library, which only a repository needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustmerge.hub.download import fetch_pinned, is_fetched
from robustmerge.hub.pins import REPOSITORY, Pinned, pin, snapshot_folder
from robustmerge.stage.address import Address, foreign
from robustmerge.stage.settings import UserError

SMALL = ("*.json", "*.jinja", "*.model", "*.py", "*.tiktoken", "*.txt")  # config, tokenizer, preprocessor

__all__ = ["Pinned", "fetch", "fetch_pinned", "find_folder", "is_fetched", "name_of", "pin", "snapshot_folder"]

# What LLaVA's own code keeps beside an adapter is fetched too: its reader refuses it, instead of losing it.
_FILES = ("adapter_config.json", "adapter_model.safetensors", "config.json", "README.md", "non_lora_trainables.bin")
_BIN = ("adapter_model.bin",)

HUB = "hub"


def find_model(named: str | Path | None) -> Path:
    """The folder of a base model: a local folder, or `user/repo[@revision]` of the hub, downloaded if need be.

    Of a repository only config, tokenizer and weights are fetched, the .bin only where there is no .safetensors.
    Raises UserError that says why it is neither.
    """
    key = "(merge.out.base)"
    if not named:
        raise UserError(f"a full model needs its base: give a local folder, or user/repo of the hub {key}")
    folder = Path(named).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists() or not REPOSITORY.fullmatch(str(named)):
        wrong = f"the base model must be a folder, or user/repo[@revision] of the hub, got '{named}'"
        raise UserError(f"{wrong}; name it {key}")
    fetched = fetch(str(named), [*SMALL, "model*.safetensors"])
    return fetched if list(fetched.glob("*.safetensors")) else fetch(str(named), ["pytorch_model*.bin"])


def find_folder(text: str | Path, pins: Path | None = None) -> Path:
    """The adapter folder that `text` names: a local folder, else `user/repo` or `user/repo@revision` on the Hub.

    Of a repository only an adapter's files are fetched, into the Hub's cache (HF_HOME), the .bin only where there
    is no .safetensors. HF_HUB_OFFLINE=1 takes what the cache has. pins: the file that remembers which commit a name
    stood for (`robustmerge.hub.pins.pin`).
    Raises UserError that says why it is neither.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise UserError(f"{text} is a file; give the adapter folder that holds it")
    if not REPOSITORY.fullmatch(str(text)):
        raise UserError(
            f"there is no folder {folder}, and a repository of the Hugging Face Hub is written user/repo or "
            "user/repo@revision"
        )
    fetched = fetch(str(text), _FILES, pins)
    if not (fetched / "adapter_config.json").exists():
        raise UserError(f"the repository '{text}' of the Hugging Face Hub is no adapter: no adapter_config.json in it")
    if not (fetched / "adapter_model.safetensors").exists():
        fetched = fetch(str(text), _BIN, pins)
    return fetched


def name_of(text: str | Path) -> str:
    """What an expert is called where no name is given: its folder, or its repository without user and revision."""
    repository = None if Path(text).expanduser().exists() else REPOSITORY.fullmatch(str(text))
    return repository["name"] if repository else Path(text).expanduser().resolve().name


def fetch(text: str, files: Sequence[str], pins: Path | None = None) -> Path:
    """The folder in the Hub's cache with those of `files` (names or patterns) that the repository has.

    Raises UserError if the repository or the revision is not to be had, with the reason.
    """
    return fetch_pinned(pin(text, pins), files)


def address_given(text: str, root: Path, pins: Path) -> Address:
    """The address of a local folder, else of `user/repo[@revision]`: known by its commit, and nothing is fetched yet.

    pins: the file that remembers which commit a name stood for. Raises UserError if it is neither.
    """
    folder = Path(text).expanduser()
    if folder.exists():
        return foreign(folder, root)
    if not REPOSITORY.fullmatch(text):
        raise UserError(
            f"there is no folder {folder}, and a repository of the Hugging Face Hub is written user/repo or "
            "user/repo@revision"
        )
    from robustmerge.hub.pins import (
        pin,
        snapshot_folder,  # needs the Hub's library
    )

    found = pin(text, pins)
    identity = {"stage": HUB, "repository": found.repository, "revision": found.revision}
    return Address(root, snapshot_folder(found), identity)
