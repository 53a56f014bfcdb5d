"""Where an adapter is: a folder on this machine, or a repository of the Hugging Face Hub.

Importing this loads neither torch nor the Hub's library, which only a repository needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustmerge.downloads import fetch_pinned
from robustmerge.hub_cache import is_fetched
from robustmerge.pins import REPOSITORY, Pinned, pin, snapshot_folder
from robustmerge.settings import UserError

__all__ = ["Pinned", "fetch", "fetch_pinned", "find_folder", "is_fetched", "name_of", "pin", "snapshot_folder"]

# What LLaVA's own code keeps beside an adapter is fetched too: its reader refuses it, instead of losing it.
_FILES = ("adapter_config.json", "adapter_model.safetensors", "config.json", "README.md", "non_lora_trainables.bin")
_BIN = ("adapter_model.bin",)


def find_folder(text: str | Path, pins: Path | None = None) -> Path:
    """The adapter folder that `text` names: a local folder, else `user/repo` or `user/repo@revision` on the Hub.

    Of a repository only an adapter's files are fetched, into the Hub's cache (HF_HOME), the .bin only where there
    is no .safetensors. HF_HUB_OFFLINE=1 takes what the cache has. pins: the file that remembers which commit a name
    stood for (`robustmerge.pins.pin`).
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
