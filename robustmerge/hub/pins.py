"""Pins: the commit that a repository of the Hugging Face Hub stands for, looked up once and kept in a file.

Importing this loads neither torch nor the Hub's library.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robustmerge.stage.files import LONGEST_NAME, read_json, read_text, write_atomically
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

_NAME = r"\w(?:[\w-]|\.(?!\.))*"  # never `..`: names and revisions are folders in the Hub's cache
_REPOSITORY = re.compile(rf"(?P<name>{_NAME}/{_NAME})(?:@(?P<revision>{_NAME}(?:/{_NAME})*))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 15  # that the Hub has to answer
MODEL, DATASET = "model", "dataset"  # the kinds of repositories; those of a kind have names of their own


@dataclass(frozen=True)
class Repository:
    """A repository as the user names it. name: user/repo; revision: a branch, a tag or a commit; kind: of what."""

    name: str
    revision: str = "main"
    kind: str = MODEL

    def __str__(self) -> str:
        return self.name if self.revision == "main" else f"{self.name}@{self.revision}"


def parse_repository(text: str, kind: str = MODEL) -> Repository | None:
    """The repository that `user/repo` or `user/repo@revision` names; None for any other text."""
    match = _REPOSITORY.fullmatch(text) if len(text) <= LONGEST_NAME else None
    return Repository(match["name"], match["revision"] or "main", kind) if match else None


@dataclass(frozen=True)
class Pinned:
    """One commit of a repository. repository: user/repo; revision: the 40 digits of the commit."""

    repository: str
    revision: str
    kind: str = MODEL

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision[:10]}"


def pin(repository: Repository, pins: Path | None = None) -> Pinned:
    """Look up the commit of a repository's branch or tag; a commit of 40 digits is returned as it is.

    pins: the JSON file that keeps the answer, `{"user/repo@main": commit}` (`datasets/user/repo@main` for a dataset);
    what it holds is not looked up again, so that a later run gets the same bytes. Remove a line to take the commit of
    today. Without a network, the commit is looked up in the Hub's cache.
    Raises UserError, with the reason, if the repository is not available.
    """
    if COMMIT.fullmatch(repository.revision):
        return Pinned(repository.name, repository.revision, repository.kind)
    if pins is None:
        return Pinned(repository.name, _ask(repository), repository.kind)
    key = f"{'datasets/' if repository.kind == DATASET else ''}{repository.name}@{repository.revision}"
    if key not in _read(pins):
        commit = _ask(repository)
        with _alone(pins):
            write_atomically(pins, json.dumps({key: commit} | _read(pins), indent=1, sort_keys=True) + "\n")
    return Pinned(repository.name, _read(pins)[key], repository.kind)


def snapshot_folder(pinned: Pinned) -> Path:
    """The folder of a commit's files in the Hub's cache (HF_HOME, HF_HUB_CACHE), fetched or not; needs no network."""
    return storage_folder(pinned.repository, pinned.kind) / "snapshots" / pinned.revision


def storage_folder(repository: str, kind: str = MODEL) -> Path:
    """The folder of a repository in the Hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"{kind}s--{repository.replace('/', '--')}"


def hub_error(text: str, error: Exception, repository: str, revision: str) -> UserError:
    """The UserError for an error that the Hub's library raised when `text` was requested."""
    from huggingface_hub import errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    reasons = {
        errors.GatedRepoError: f"it is gated; ask for access on its page, then {log_in}",
        errors.RepositoryNotFoundError: f"there is no repository {repository} (if it is private: {log_in})",
        errors.RevisionNotFoundError: f"{repository} has no revision {revision}",
    }
    other = (str(error).splitlines() or [type(error).__name__])[0]
    if not _is_answer(error):
        why = "no network, or HF_HUB_OFFLINE is set?"
        other = f"it is not whole in the cache, and the rest was not fetched ({why}): {other}"
    reason = next((reason for kind, reason in reasons.items() if isinstance(error, kind)), other)
    return UserError(f"'{text}' is no folder here, and cannot be had from the Hugging Face Hub: {reason}")


def _is_answer(error: Exception) -> bool:
    """Whether the error is a refusal by the Hub, not a failure to reach it or of the Hub itself."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code < 500


def _ask(repository: Repository) -> str:
    """Ask the Hub for the commit of a branch or tag; if it is not reached, look in its cache."""
    from huggingface_hub import HfApi

    name, revision, kind = repository.name, repository.revision, repository.kind
    ref = storage_folder(name, kind) / "refs" / revision
    try:
        commit = HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=_SECONDS).sha
    except Exception as error:  # what the network raises differs between versions of the Hub's library
        if _is_answer(error) or not ref.is_file():
            raise hub_error(str(repository), error, name, revision) from error
        return _check_commit(read_text(ref, "the commit of a repository").strip(), str(ref))
    with contextlib.suppress(OSError):  # a cache that cannot be written serves those who read it
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ref, commit)
    return commit


def _read(pins: Path) -> dict[str, str]:
    commits = read_json(pins, "the commits of repositories") if pins.exists() else {}
    return {key: _check_commit(commit, f"{pins}: {quote(key)}") for key, commit in commits.items()}


def _check_commit(commit: object, where: str) -> str:
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise UserError(f"{where} must be a commit of 40 hexadecimal digits, got {quote(commit)}")
    return commit


@contextlib.contextmanager
def _alone(pins: Path) -> Iterator[None]:
    """Context manager: lock the file against other processes."""
    pins.parent.mkdir(parents=True, exist_ok=True)
    with open(pins.with_name(f".{pins.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
