"""What comes from elsewhere: a folder, or a repository of the Hub in a pinned state."""

from __future__ import annotations

from pathlib import Path

from robustmerge.pins import REPOSITORY
from robustmerge.runs import Address, foreign
from robustmerge.settings import UserError

HUB = "hub"


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
    from robustmerge.pins import pin, snapshot_folder  # needs the Hub's library

    found = pin(text, pins)
    identity = {"stage": HUB, "repository": found.repository, "revision": found.revision}
    return Address(root, snapshot_folder(found), identity)
