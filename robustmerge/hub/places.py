"""Places of adapters, models and datasets: a local folder, or a repository of the Hub that is fetched when needed.

Importing this loads neither torch nor the Hub's library, which only a repository needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robustmerge.hub.download import fetch_pinned
from robustmerge.hub.pins import MODEL, Repository, parse_repository, pin, snapshot_folder
from robustmerge.stage.address import Address, address_foreign
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote

HUB = "hub"  # the stage in the identity of a repository
SMALL = ("*.json", "*.jinja", "*.model", "*.py", "*.tiktoken", "*.txt")  # config, tokenizer, preprocessor

# What LLaVA's own code keeps beside an adapter is fetched too: its reader refuses it, instead of losing it.
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "config.json", "README.md", "non_lora_trainables.bin")
_ADAPTER_BIN = ("adapter_model.bin",)


def find_place(text: str | Path, kind: str = MODEL) -> Path | Repository:
    """Read a text as a local folder, else as a repository `user/repo` or `user/repo@revision`; needs no network.

    kind: of the repository, MODEL or DATASET. Raises UserError that says why it is neither.
    """
    if not str(text):
        raise UserError("the path is empty; give a folder, or a repository of the Hugging Face Hub")
    folder = _as_path(text)
    if folder is not None and folder.is_dir():
        return folder.resolve()
    if folder is not None and folder.exists():
        raise UserError(f"{text} is a file; give the folder that holds it")
    if folder is not None and folder.is_symlink():
        raise UserError(f"{text} is a link to {folder.readlink()}, which is not there")
    repository = parse_repository(str(text), kind)
    if repository is None:
        raise UserError(
            f"there is no folder {folder or quote(text)}, and a repository of the Hugging Face Hub is written "
            "user/repo or user/repo@revision"
        )
    return repository


def _as_path(text: str | Path) -> Path | None:
    """The text as a path; None if it can be none: too long, a zero byte in it, or the home of an unknown user."""
    try:
        path = Path(text).expanduser()
        path.resolve()
        path.exists()
    except PermissionError:  # told where it is opened
        pass
    except (OSError, ValueError, RuntimeError):
        return None
    return path


def split_name(entry: str) -> tuple[str, str]:
    """Split `NAME:PLACE` into its two parts; the name of a bare `PLACE` is empty, as is that of what exists.

    >>> split_name("vqa:path/to/adapter"), split_name("user/repo@v1")
    (('vqa', 'path/to/adapter'), ('', 'user/repo@v1'))
    """
    path, (name, colon, place) = _as_path(entry), entry.partition(":")
    is_place = path is not None and path.exists()
    return (name, place) if colon and not is_place else ("", entry)


def name_of(text: str | Path) -> str:
    """The default name of an expert: that of its folder, or its repository without user and revision."""
    path = _as_path(text)
    repository = None if path is not None and path.exists() else parse_repository(str(text))
    return repository.name.partition("/")[2] if repository else (path.resolve() if path else Path(text)).name


def find_address(text: str, root: Path, pins: Path) -> Address:
    """The address of a local folder, or of a repository by its commit; nothing is fetched yet.

    pins: the file that remembers which commit a name stood for. Raises UserError if it is neither.
    """
    place = find_place(text)
    return address_foreign(place, root) if isinstance(place, Path) else address_repository(place, root, pins)


def address_repository(repository: Repository, root: Path, pins: Path) -> Address:
    """The address of a repository by the commit that it stands for; nothing is fetched yet.

    Raises UserError if the Hub does not tell the commit.
    """
    pinned = pin(repository, pins)
    kind = {} if pinned.kind == MODEL else {"kind": pinned.kind}
    identity = {"stage": HUB, "repository": pinned.repository, "revision": pinned.revision, **kind}
    return Address(root, snapshot_folder(pinned), identity)


def fetch(place: Path | Repository, files: Sequence[str], pins: Path | None = None) -> Path:
    """Return a local folder as it is; fetch the matching `files` of a repository and return its folder in the cache.

    files: names or patterns. pins: the file that remembers which commit a name stood for (`hub.pins.pin`).
    Raises UserError if the repository or the revision is not to be had, with the reason.
    """
    return place if isinstance(place, Path) else fetch_pinned(pin(place, pins), files)


def fetch_adapter(place: Path | Repository, pins: Path | None = None) -> Path:
    """Fetch an adapter and return its folder; of a repository only adapter files, a .bin only without a .safetensors.

    Raises UserError if the repository is not to be had, or is no adapter.
    """
    folder = fetch(place, _ADAPTER, pins)
    if isinstance(place, Path):
        return folder
    if not (folder / "adapter_config.json").exists():
        raise UserError(f"the repository '{place}' of the Hugging Face Hub is no adapter: no adapter_config.json in it")
    has_weights = (folder / "adapter_model.safetensors").exists()
    return folder if has_weights else fetch(place, _ADAPTER_BIN, pins)


def fetch_model(text: str | Path | None, key: str = "merge.out.base") -> Path:
    """Fetch the base of a full model and return its folder: a local one, or that of `user/repo[@revision]`.

    key: of the setting, for messages. Raises UserError that says why it is neither.
    """
    if not text:
        raise UserError(f"a full model needs its base: give a local folder, or user/repo of the hub ({key})")
    try:
        place = find_place(text)
    except UserError as error:
        raise UserError(f"the base model cannot be found: {error} ({key})") from error
    return fetch_weights(place)


def fetch_weights(place: Path | Repository) -> Path:
    """Fetch config, tokenizer and weights of a model and return their folder; a .bin only without a .safetensors."""
    folder = fetch(place, [*SMALL, "model*.safetensors"])
    has_weights = isinstance(place, Path) or any(folder.glob("*.safetensors"))
    return folder if has_weights else fetch(place, ["pytorch_model*.bin"])
