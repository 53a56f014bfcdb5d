"""Access to the Hub for an upload: log in, find the repository, make one commit; errors with remedies."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import HfApi

from robustmerge.push.files import UploadedFile
from robustmerge.stage.settings import UserError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write (huggingface.co/settings/tokens)"
ALWAYS_THERE = (".gitattributes",)  # what the Hub puts into a new repository


@dataclass(frozen=True)
class Repository:
    """A repository as it is before the upload."""

    url: str
    user: str
    is_new: bool
    private: bool
    files: tuple[str, ...]


@dataclass(frozen=True)
class Commit:
    url: str
    revision: str


def log_in() -> HfApi:
    """Log in to the Hub. Raises UserError without a token that it accepts."""
    from huggingface_hub import HfApi, constants, get_token

    if constants.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set, and an upload needs the Hub: unset it")
    if get_token() is None:
        raise UserError(f"there is no token for the Hub: {LOG_IN}")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


def find_repository(api: HfApi, repo: str) -> Repository:
    """Find out who is logged in and what the repository already holds."""
    from huggingface_hub.errors import RepositoryNotFoundError

    url = f"{api.endpoint}/{repo}"
    with _in_our_words(repo):
        user = api.whoami()["name"]
        try:
            info = api.model_info(repo)
        except RepositoryNotFoundError:
            return Repository(url, user, True, False, ())
    files = tuple(file.rfilename for file in info.siblings or () if file.rfilename not in ALWAYS_THERE)
    return Repository(url, user, False, bool(info.private), files)


def upload(api: HfApi, repo: str, private: bool | None, files: Sequence[UploadedFile], message: str) -> Commit:
    """Upload all files in one commit. private: create the repository first; None: it exists."""
    from huggingface_hub import CommitOperationAdd

    added = [
        CommitOperationAdd(file.name, file.content if isinstance(file.content, bytes) else str(file.content))
        for file in files
    ]
    with _in_our_words(repo):
        if private is not None:
            api.create_repo(repo, private=private)
        commit = api.create_commit(repo, added, commit_message=message)
    return Commit(str(commit.commit_url), commit.oid)


@contextmanager
def _in_our_words(repo: str) -> Iterator[None]:
    """Raises UserError for whatever the Hub's library raises, with the reason and the remedy."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise UserError(f"the Hub refused to take '{repo}': {_reason(status, repo, error)}") from error
    except Exception as error:  # what the network raises differs between versions of the library
        again = "nothing is lost; type the same command to go on"
        raise UserError(f"'{repo}' could not be uploaded: {_first_line(error)}; {again}") from error


def _reason(status: int, repo: str, error: Exception) -> str:
    owner = repo.partition("/")[0]
    reasons = {
        401: f"the token is not valid; {LOG_IN}",
        402: "the account has no room left for private files",
        403: f"the token has no right to write to '{owner}'; {LOG_IN}",
        409: "a repository of that name exists already; type the same command again",
        413: "a file is too large for it",
        429: "too many requests; wait some minutes",
    }
    return reasons.get(status, _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
