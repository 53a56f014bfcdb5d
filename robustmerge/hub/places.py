"""What a text names: a folder on this machine, or a repository of the Hugging Face Hub, fetched where it is needed.

Importing this loads neither torch nor the Hub's library, which only a repository needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustmerge.hub.download import fetch_pinned
from robustmerge.hub.pins import Repository, parse_repository, pin, snapshot_folder
from robustmerge.stage.address import Address, foreign
from robustmerge.stage.settings import UserError

HUB = "hub"  # the stage in the identity of a repository
SMALL = ("*.json", "*.jinja", "*.model", "*.py", "*.tiktoken", "*.txt")  # config, tokenizer, preprocessor

# What LLaVA's own code keeps beside an adapter is fetched too: its reader refuses it, instead of losing it.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "config.json", "README.md", "non_lora_trainables.bin")
_ADAPTER_BIN = ("adapter_model.bin",)


def find_place(text: str | Path) -> Path | Repository:
    """The local folder that a text names, else the repository `user/repo` or `user/repo@revision`. Asks nobody.

    Raises UserError that says why it is neither.
    """
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise UserError(f"{text} is a file; give the folder that holds it")
    repository = parse_repository(str(text))
    if repository is None:
        raise UserError(
            f"there is no folder {folder}, and a repository of the Hugging Face Hub is written user/repo or "
            "user/repo@revision"
        )
    return repository


def split_name(entry: str) -> tuple[str, str]:
    """The two parts of `NAME:PLACE`; of a bare `PLACE` the name is empty.

    >>> split_name("vqa:path/to/adapter"), split_name("user/repo@v1")
    (('vqa', 'path/to/adapter'), ('', 'user/repo@v1'))
    """
    name, colon, place = entry.partition(":")
    return (name, place) if colon else ("", entry)


def name_of(text: str | Path) -> str:
    """What an expert is called where no name is given: its folder, or its repository without user and revision."""
    repository = None if Path(text).expanduser().exists() else parse_repository(str(text))
    return repository.name.partition("/")[2] if repository else Path(text).expanduser().resolve().name


def find_address(text: str, root: Path, pins: Path) -> Address:
    """The address of a local folder, else of a repository: known by its commit, and nothing is fetched yet.

    pins: the file that remembers which commit a name stood for. Raises UserError if it is neither.
    """
    place = find_place(text)
    if isinstance(place, Path):
        return foreign(place, root)
    pinned = pin(place, pins)
    identity = {"stage": HUB, "repository": pinned.repository, "revision": pinned.revision}
    return Address(root, snapshot_folder(pinned), identity)


def fetch(place: Path | Repository, files: Sequence[str], pins: Path | None = None) -> Path:
    """A local folder as it is; of a repository the folder in the Hub's cache, with those of `files` that it has.

    files: names or patterns. pins: the file that remembers which commit a name stood for (`hub.pins.pin`).
    Raises UserError if the repository or the revision is not to be had, with the reason.
    """
    return place if isinstance(place, Path) else fetch_pinned(pin(place, pins), files)


def fetch_adapter(place: Path | Repository, pins: Path | None = None) -> Path:
    """The folder of an adapter: of a repository only an adapter's files, the .bin only without a .safetensors.

    Raises UserError if the repository is not to be had, or is no adapter.
    """
    folder = fetch(place, _ADAPTER, pins)
    if isinstance(place, Path):
        return folder
    if not (folder / "adapter_config.json").exists():
        raise UserError(f"the repository '{place}' of the Hugging Face Hub is no adapter: no adapter_config.json in it")
    has_weights = (folder / "adapter_model.safetensors").exists()
    return folder if has_weights else fetch(place, _ADAPTER_BIN, pins)


def fetch_model(text: str | Path | None) -> Path:
    """The folder of the base that a full model is made from: a local one, or that of `user/repo[@revision]`.

    Of a repository only config, tokenizer and weights are fetched, the .bin only without a .safetensors.
    Raises UserError that says why it is neither.
    """
    key = "(merge.out.base)"
    if not text:
        raise UserError(f"a full model needs its base: give a local folder, or user/repo of the hub {key}")
    try:
        place = find_place(text)
    except UserError as error:
        raise UserError(f"the base model cannot be found: {error} {key}") from error
    folder = fetch(place, [*SMALL, "model*.safetensors"])
    has_weights = isinstance(place, Path) or any(folder.glob("*.safetensors"))
    return folder if has_weights else fetch(place, ["pytorch_model*.bin"])
