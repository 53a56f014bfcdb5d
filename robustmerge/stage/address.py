"""Addresses of results: where each is, what identifies it, when it is complete (manifest), who works on it (lock).

A stage writes one folder (predict and score: one file) whose name ends in the hash of its *identity*: the stage,
its schema number, the settings that change the result, and the identities of its inputs. The manifest is written
last, so a result is complete exactly when its manifest exists. Nothing is overwritten, nothing is named by time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from robustmerge.stage.files import (
    BESIDE,
    cached_sha256,
    check_file_name,
    expand,
    find_unpublished,
    is_of_kernel,
    list_files,
    parse_json,
    read_json,
    remove,
    require_file,
    sha256_of,
    write_atomically,
)
from robustmerge.stage.process import process_start
from robustmerge.stage.settings import LATER, OUTSIDE_IDENTITY, UserError, first_few, key_of
from robustmerge.stage.text import plain, quote, shorten

REPOSITORY = Path(__file__).resolve().parents[2]  # the checkout; of an installed package, the folder it lies in
UNFINISHED = "unfinished"  # the folder inside a result in which a stage keeps what it goes on from
DRAFT = f".draft{BESIDE}"  # the folder inside a result from which all of its files move to their places at once
KEEP_SECONDS_EVERY = 10.0
FILE_SUFFIXES = (".json", ".jsonl")
PACKAGES = ("robustmerge", "torch", "transformers", "peft", "accelerate", "deepspeed", "numpy", "safetensors", "pillow")


@dataclass(frozen=True)
class Address:
    """The address of a result: where it is or will be, and what identifies it.

    root: the folder of the whole run; path: the result's folder or file; identity: the mapping that is hashed.
    """

    root: Path
    path: Path
    identity: dict

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the identity, keys sorted; names of foreign files that are not UTF-8 count by their bytes."""
        return hashlib.sha256(_canonical(self.identity).encode(errors="surrogateescape")).hexdigest()

    @property
    def hash8(self) -> str:
        return self.fingerprint[:8]

    @property
    def short(self) -> str:
        """The address as shown to users: `experts/vqav2-1a2b3c4d`; `bases/tiny-paper`, of this repository."""
        for folder in (self.root, REPOSITORY):
            with contextlib.suppress(ValueError):
                return self.path.relative_to(folder).as_posix()
        return str(self.path)

    @property
    def is_file(self) -> bool:
        return self.path.suffix in FILE_SUFFIXES

    @property
    def manifest(self) -> Path:
        return self.path.with_suffix(".manifest.json") if self.is_file else self.path / "manifest.json"

    @property
    def lock(self) -> Path:
        return self.path.with_name(self.path.name + ".lock")

    @property
    def seconds(self) -> Path:
        """The file that keeps how long an unfinished result has been worked on."""
        return self.path.with_name(self.path.name + ".seconds")

    def is_complete(self) -> bool:
        """Whether the result has its manifest. Raises UserError if that manifest describes another result."""
        if self.identity.get("stage") == "foreign":
            return True
        if not self.manifest.exists():
            return False
        if not self._is_of(read_manifest(self.manifest)):
            raise UserError(
                f"{self.manifest} describes another result than its address promises; nothing is overwritten. "
                f"Move {self.path} away and run the command again"
            )
        return True

    def _is_of(self, manifest: Mapping[str, Any]) -> bool:
        """Whether a manifest describes this result."""
        return manifest["identity"] == json.loads(_canonical(self.identity))

    @property
    def draft(self) -> Path:
        return self.path / DRAFT

    def is_drafted(self) -> bool:
        """Whether all of the result is there, some of it in its draft: a run was killed while it moved the files."""
        try:
            manifest = read_manifest(self.draft / "manifest.json")
        except UserError:
            return False
        moved, waiting = _list_outputs(self.path), _list_outputs(self.draft)
        is_ours = self._is_of(manifest) and not set(moved) & set(waiting)
        return is_ours and _digests({**moved, **waiting}) == manifest["record"].get("outputs")

    def to_json(self) -> dict:
        return {"root": str(self.root), "path": str(self.path), "identity": self.identity}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Address:
        return cls(Path(values["root"]), Path(values["path"]), dict(values["identity"]))


def _canonical(identity: Mapping[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _identity_of(stage: str, schema: int, settings: Any, inputs: Mapping[str, Address]) -> dict:
    identity = {
        "stage": stage,
        "schema": schema,
        "settings": settings_in_identity(settings),
        "inputs": {name: address.fingerprint for name, address in sorted(inputs.items())},
    }
    try:
        _canonical(identity).encode()
    except UnicodeEncodeError as error:
        near = error.object[max(0, error.start - 30) : error.end + 30]
        raise UserError(f"a name is not UTF-8 and cannot be recorded; give another: {quote(near)}") from error
    return identity


def settings_in_identity(settings: Any) -> Any:
    """The part of a settings dataclass that changes the result, as plain JSON values.

    A dataclass may say `as_used`: itself, with whatever it does not use at its default.
    """
    if dataclasses.is_dataclass(settings):
        settings = getattr(settings, "as_used", settings)
        return {
            key_of(field): settings_in_identity(getattr(settings, field.name))
            for field in dataclasses.fields(settings)
            if field.init and not _left_out(field, getattr(settings, field.name))
        }
    if isinstance(settings, Mapping):
        return {str(key): settings_in_identity(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [settings_in_identity(value) for value in settings]
    return settings


def _left_out(field: dataclasses.Field, value: Any) -> bool:
    if field.metadata.get(OUTSIDE_IDENTITY):
        return True
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return bool(field.metadata.get(LATER)) and value == default


def address_folder(
    root: Path, kind: str, name: str, stage: str, schema: int, settings: Any, inputs: Mapping[str, Address]
) -> Address:
    """The address `root/kind/name-hash8` of a stage that writes a folder."""
    identity = _identity_of(stage, schema, settings, inputs)
    unnamed = Address(root, root, identity)
    return dataclasses.replace(unnamed, path=root / kind / f"{name}-{unnamed.hash8}")


def address_file(
    root: Path, file: Path, stage: str, schema: int, settings: Any, inputs: Mapping[str, Address]
) -> Address:
    """The address of a stage that writes one file, its manifest beside it. file: its path without `-hash8`."""
    unnamed = Address(root, file, _identity_of(stage, schema, settings, inputs))
    return dataclasses.replace(unnamed, path=file.with_name(f"{file.stem}-{unnamed.hash8}{file.suffix}"))


def address_chosen(
    out: Path, stage: str, schema: int, settings: Any, inputs: Mapping[str, Address], what: str
) -> Address:
    """The address of a stage that writes a folder of the user's choice. what: the inputs in one word.

    Raises UserError if something else is there, or if it lies in one of the inputs, which it would change.
    """
    if holders := [name for name, one in inputs.items() if one.path.resolve() in out.resolve().parents]:
        raise UserError(f"{out} lies in the folder of '{holders[0]}'; choose a folder beside it (out)")
    address = Address(out.parent, out, _identity_of(stage, schema, settings, inputs))
    paths = [out] if out.exists() and not out.is_dir() else out.glob("*")
    if all(path.name.endswith(BESIDE) for path in paths) or address.is_drafted():
        return address
    others = f"{out} is there already and is not empty; choose another folder, or remove it (out)"
    if (address.draft / "manifest.json").exists():
        raise UserError(f"{others}. It holds an unfinished {stage} of other {what} or settings, or changed since")
    try:
        complete = address.is_complete()
    except UserError as error:
        raise UserError(f"{others}. What it holds was made of other {what} or settings") from error
    if not complete:
        raise UserError(others)
    if changed := find_changed(out, read_manifest(address.manifest)):
        raise UserError(f"{others}. It holds this {stage}, but not as it was written: {', '.join(first_few(changed))}")
    return address


def address_foreign(path: Path, root: Path | None = None) -> Address:
    """The address of a folder or file from elsewhere, identified by its files' names, sizes and sha256.

    The card of a folder, which people edit, and hidden files do not count. A complete result of ours keeps the identity
    of its manifest, as long as its files are those that were written (`find_changed`). Large files are not read at
    every start (robustmerge.stage.files). Raises UserError if nothing is there, a result of ours that is not finished,
    or a file that cannot be read.
    """
    path = _resolve(path)
    is_draft = (path / DRAFT).exists() and not (path / "manifest.json").exists()
    if (path / UNFINISHED).exists() or is_draft or is_locked(path):
        raise UserError(f"{path} is not finished yet; run the command that makes it to its end")
    try:
        identity = _read_identity(path) if path.is_dir() else None
        return Address(root or path.parent, path, identity or {"stage": "foreign", "files": _describe_files(path)})
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read: {error.strerror}. Every file in a folder is part of what "
            "identifies it: mend its rights, or move it elsewhere"
        ) from error


def _resolve(path: Path) -> Path:
    """The absolute path of a file or folder that exists. Raises UserError that says why there is none."""
    try:
        resolved = expand(path).resolve()
        resolved.stat()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is too long or not one
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if is_of_kernel(resolved):
        raise UserError(f"{path} is in /{resolved.parts[1]}, where the system shows itself; give a folder on a disk")
    return resolved if resolved.is_dir() else require_file(resolved, "a file or a folder")


def _describe_files(path: Path) -> Any:
    """Size and sha256 of a file, or of every file in a folder by its name there."""
    if not path.is_dir():
        return [path.stat().st_size, cached_sha256(path)]
    files = {file.relative_to(path).as_posix(): file for file in list_files(path)}
    return {name: _describe_files(file) for name, file in files.items() if _counts(name)}


def _counts(name: str) -> bool:
    """Whether a file is part of what identifies its folder: all but the card, which people edit, and hidden ones."""
    return name != "README.md" and not name.startswith(".")


def _read_identity(folder: Path) -> dict | None:
    """The identity in the manifest of a result of ours; None if it has none that can be believed."""
    try:
        manifest = read_manifest(folder / "manifest.json")
    except UserError:
        return None
    is_ours = set(manifest["identity"]) == set(_identity_of("", 0, {}, {})) and not find_changed(folder, manifest)
    return manifest["identity"] if is_ours else None


def find_changed(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Find what in a folder differs from the outputs in its manifest: files that are missing, added or changed.

    Only of those that identify it (`_counts`).
    """
    listed, present = manifest["record"].get("outputs", {}), _list_outputs(folder)
    names = set(listed) ^ set(present) or {name for name, digest in _digests(present).items() if digest != listed[name]}
    return sorted(filter(_counts, names))


def read_manifest(path: Path) -> dict:
    """Read a manifest. Raises UserError if the file is not a manifest."""
    manifest = read_json(path, "a manifest of ours")
    for key in ("identity", "record"):
        if not isinstance(value := manifest.get(key), dict):
            raise UserError(f"{path} is not a manifest of ours: {key} must be an object, got {quote(value)}")
    outputs = manifest["record"].get("outputs", {})
    if not isinstance(outputs, dict) or not all(isinstance(digest, str) for digest in outputs.values()):
        raise UserError(f"{path} is not a manifest of ours: outputs must be digests by name, got {quote(outputs)}")
    for name in outputs:
        check_file_name(name, f"{path}: a name in outputs")
    return {"identity": manifest["identity"], "record": manifest["record"]}


def get_mapping(part: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A mapping within a part of a manifest; empty where there is anything else."""
    value = part.get(key)
    return value if isinstance(value, dict) else {}


def run_stage(
    address: Address,
    work: Callable[[Path], dict | None],
    say: Callable[[str], None] = print,
    at_once: bool = False,
) -> Path:
    """Run `work` to make the result at `address`, unless it is complete, and return the result's path.

    Takes the lock (waits while a running process holds it), calls `work(path)`, which resumes from whatever an
    interrupted run has left there, and writes the manifest last. What `work` returns is added to the manifest's
    record. at_once: `work` starts anew in an empty folder, whose files appear together or not at all.
    """
    left = at_once and (address.lock.exists() or address.draft.exists())  # by a run that was killed at its very end
    if left or not address.is_complete():
        with _locked(address, say):
            if not address.is_complete():
                (_make_at_once if at_once else _make_in_place)(address, work)
            elif at_once:
                _remove_draft(address)
    return address.path


def _make_in_place(address: Address, work: Callable[[Path], dict | None]) -> None:
    started = time.time()
    with _counted_seconds(address) as count_seconds:
        (address.path.parent if address.is_file else address.path).mkdir(parents=True, exist_ok=True)
        try:
            details = work(address.path) or {}
        except BaseException:
            _remove_if_empty(address)
            raise
        _remove_cut_files(address.path)
        record = {**_record(address.path, started, count_seconds()), **details}
    _write_manifest(address.manifest, address, record)


def _make_at_once(address: Address, work: Callable[[Path], dict | None]) -> None:
    """Make a folder in a draft inside of it, and move all files to their places when the last one is written.

    An error leaves nothing. A kill leaves the draft, and if it is complete, the next run moves what is still in it.
    """
    _remove_cut_files(address.path)
    try:
        if not address.is_drafted():
            started = time.time()
            _remove_draft(address)
            address.draft.mkdir(parents=True)
            details = work(address.draft) or {}
            record = {**_record(address.draft, started, time.time() - started), **details}
            _write_manifest(address.draft / "manifest.json", address, record)
        _move_up(address)
    finally:
        _remove_draft(address)
        _remove_if_empty(address)


def _move_up(address: Address) -> None:
    """Move the files of a complete draft to their places, the manifest last; all or none."""
    names = [*read_manifest(address.draft / "manifest.json")["record"]["outputs"], "manifest.json"]
    with contextlib.ExitStack() as moved:
        for name in names:
            moved.callback(remove, address.path / name)
            if (address.draft / name).exists():  # else it was moved before a kill
                os.replace(address.draft / name, address.path / name)
        moved.pop_all()


def _remove_draft(address: Address) -> None:
    remove(address.draft)


def _write_manifest(path: Path, address: Address, record: Mapping[str, Any]) -> None:
    manifest = {"identity": address.identity, "record": record}
    write_atomically(path, json.dumps(manifest, indent=1, sort_keys=True) + "\n")


def _remove_if_empty(address: Address) -> None:
    """Remove the folder of a stage that was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        address.path.rmdir()


@contextlib.contextmanager
def _counted_seconds(address: Address) -> Iterator[Callable[[], float]]:
    """Context manager: yield a function that returns the seconds of work on a result, interrupted runs included.

    A file beside the lock keeps the sum while the result is unfinished; a kill loses what is younger than
    KEEP_SECONDS_EVERY. It does not count if nothing is left of what the earlier runs had made.
    """
    file, over = address.seconds, threading.Event()
    before = _read_seconds(file) if _is_begun(address) else 0.0
    started = time.monotonic()

    def count() -> float:
        return before + time.monotonic() - started

    def keep() -> None:
        while not over.wait(KEEP_SECONDS_EVERY):
            with contextlib.suppress(OSError):
                write_atomically(file, f"{count():.2f}\n")

    keeper = threading.Thread(target=keep, name="keep-seconds", daemon=True)
    keeper.start()
    is_finished = False
    try:
        yield count
        is_finished = True
    finally:
        over.set()
        keeper.join()
        if is_finished or not _is_begun(address):
            file.unlink(missing_ok=True)
        else:
            with contextlib.suppress(OSError):  # a full disk must not hide why the stage fails
                write_atomically(file, f"{count():.2f}\n")


def _read_seconds(file: Path) -> float:
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0


def _is_begun(address: Address) -> bool:
    """Whether anything of a result exists: files in its folder, or the file itself or parts of it."""
    if not address.is_file:
        return address.path.is_dir() and any(address.path.iterdir())
    parts = address.path.parent.glob(f"{glob.escape(address.path.name)}*")
    return any(part not in (address.lock, address.seconds) for part in parts)


def _remove_cut_files(path: Path) -> None:
    """Remove files that a killed process was still writing."""
    for file in path.rglob(f".*{BESIDE}") if path.is_dir() else find_unpublished(path):
        if not file.is_dir():
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(address: Address, say: Callable[[str], None]) -> Iterator[None]:
    """Hold `<address>.lock`. The kernel frees it when its holder ends, however it ends."""
    address.lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(address.lock, say)
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": process_start(os.getpid())}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        address.lock.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock: Path, say: Callable[[str], None]) -> int:
    is_announced = False
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):  # its last holder may be removing it
                if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                    return descriptor
        except BlockingIOError:
            if not is_announced:
                say(f"waiting for another run to finish {lock.with_suffix('')} (held by {_holder(lock)})")
                is_announced = True
            time.sleep(0.5)
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a running process holds the lock of the result at `path`."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _holder(lock: Path) -> str:
    try:
        held = parse_json(lock.read_text())
        return shorten(plain(f"process {held['pid']} on {held['host']}"))
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _list_outputs(path: Path) -> dict[str, Path]:
    """The files and folders of a result by name, without its manifest and what was not published."""
    outputs = sorted(path.iterdir()) if path.is_dir() else [path]
    return {p.name: p for p in outputs if p.name != "manifest.json" and not p.name.endswith(BESIDE)}


def _digests(paths: Mapping[str, Path]) -> dict[str, str]:
    return {name: sha256_of(path) if path.is_dir() else cached_sha256(path) for name, path in paths.items()}


def _record(path: Path, started: float, seconds: float) -> dict:
    """Build a manifest's record: time, machine, duration, code, packages, and the sha256 of the result's files."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(seconds, 2),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
        **commit(),
        "outputs": _digests(_list_outputs(path)),
    }


@lru_cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


@lru_cache
def commit() -> dict[str, Any]:
    """The commit of this checkout and whether the working tree differs from it; null without git, or where installed.

    What runs write does not count: the folders under results/. An installed package may lie in a checkout of somebody
    else's (`.venv`), whose commit says nothing of it.
    """
    if not (REPOSITORY / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    status = git("status", "--porcelain", "--", ".", ":(exclude)results/*/*")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
