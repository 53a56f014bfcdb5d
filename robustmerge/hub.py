"""Where an adapter is: a folder on this machine, or a repository of the Hugging Face Hub.

Importing this loads neither torch nor the Hub's library, which only a repository needs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from robustmerge.settings import UserError

_REPOSITORY = re.compile(r"(?P<repository>\w[\w.-]*/(?P<name>[\w.-]+))(?:@(?P<revision>[\w./-]+))?")
# What LLaVA's own code keeps beside an adapter is fetched too: its reader refuses it, instead of losing it.
_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", "non_lora_trainables.bin")
_BIN = ("adapter_model.bin",)


def find_folder(text: str | Path) -> Path:
    """The adapter folder that `text` names: a local folder, else `user/repo` or `user/repo@revision` on the Hub.

    Of a repository only an adapter's files are fetched, into the Hub's cache (HF_HOME), the .bin only where there
    is no .safetensors. HF_HUB_OFFLINE=1 takes what the cache has.
    Raises UserError that says why it is neither.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise UserError(f"{text} is a file; give the adapter folder that holds it")
    if not _REPOSITORY.fullmatch(str(text)):
        raise UserError(
            f"there is no folder {folder}, and a repository of the Hugging Face Hub is written user/repo or "
            "user/repo@revision"
        )
    fetched = fetch(str(text), _FILES)
    if not (fetched / "adapter_config.json").exists():
        raise UserError(f"the repository '{text}' of the Hugging Face Hub is no adapter: no adapter_config.json in it")
    if not (fetched / "adapter_model.safetensors").exists():
        fetched = fetch(str(text), _BIN)
    return fetched


def name_of(text: str | Path) -> str:
    """What an expert is called where no name is given: its folder, or its repository without user and revision."""
    repository = None if Path(text).expanduser().exists() else _REPOSITORY.fullmatch(str(text))
    return repository["name"] if repository else Path(text).expanduser().resolve().name


def fetch(text: str, files: Sequence[str]) -> Path:
    """The folder in the Hub's cache with those of `files` (names or patterns) that the repository has.

    Raises UserError if the repository or the revision is not to be had, with the reason.
    """
    from huggingface_hub import snapshot_download

    found = _REPOSITORY.fullmatch(text)
    try:
        return Path(snapshot_download(found["repository"], revision=found["revision"], allow_patterns=list(files)))
    except Exception as error:  # what the network raises differs between versions of the Hub's library
        raise UserError(
            f"'{text}' is no folder here, and cannot be had from the Hugging Face Hub: {_reason(error, found)}"
        ) from error


def _reason(error: Exception, found: re.Match) -> str:
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    reasons = {
        errors.GatedRepoError: f"it is gated; ask for access on its page, then {log_in}",
        errors.RepositoryNotFoundError: f"there is no repository {found['repository']} (if it is private: {log_in})",
        errors.RevisionNotFoundError: f"{found['repository']} has no revision {found['revision']}",
        errors.LocalEntryNotFoundError: "it is not whole in the cache, and the Hub was not reached (no network, or "
        "HF_HUB_OFFLINE is set)",
    }
    other = (str(error).splitlines() or [type(error).__name__])[0]
    return next((reason for kind, reason in reasons.items() if isinstance(error, kind)), other)
