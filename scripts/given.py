"""What comes from elsewhere: a folder, or a repository of the Hub in a pinned state; adapters in LLaVA's own format."""

from __future__ import annotations

import json
from pathlib import Path

from robustmerge.runs import Address, foreign

HUB = "hub"


def address_given(text: str, root: Path, pins: Path) -> Address:
    """The address of a local folder, else of `user/repo[@revision]`: known by its commit, and nothing is fetched yet.

    pins: the file that remembers which commit a name stood for. Raises UserError if it is neither.
    """
    folder = Path(text).expanduser()
    if folder.exists():
        return foreign(folder, root)
    from robustmerge.pins import pin, snapshot_folder  # needs the Hub's library

    found = pin(text, pins)
    identity = {"stage": HUB, "repository": found.repository, "revision": found.revision}
    return Address(root, snapshot_folder(found), identity)


def looks_original(folder: Path) -> bool:
    """Whether a folder holds an adapter in LLaVA's own format, by what it holds, without reading a tensor."""
    if (folder / "non_lora_trainables.bin").exists():
        return True
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return (folder / "adapter_config.json").exists() and "mm_projector_type" in config
