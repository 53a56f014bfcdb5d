"""Facts about this machine as plain JSON values, sizes in bytes.

Standard library only, but for torch where it is installed. A part that fails is reported as its `error` and stops
no other part.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.program import runs_folder
from robustmerge.stage.address import REPOSITORY

BASE = "llava-hf/llava-1.5-7b-hf"
EXPERT_TASKS = ("ScienceQA", "ImageNet", "VQAv2", "REC", "OCRVQA", "VizWiz", "flickr30k", "IconQA")
EXPERTS = tuple(f"AuroraZengfh/LLaVA_7B_lora_r16_{task}" for task in EXPERT_TASKS)
HUB_SECONDS = 4.0  # time limit of the request to the Hub
ON = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its switches


def gather_facts() -> dict[str, Any]:
    """Every part of the machine, one after the other; only the Hub is asked over a network."""
    parts: dict[str, Callable[[], dict]] = {
        "python": describe_python,
        "torch": describe_torch,
        "cpu": describe_cpu,
        "java": describe_java,
        "disk": describe_disk,
        "hub": describe_hub,
        "packages": compare_packages,
    }
    return {name: _guarded(part) for name, part in parts.items()}


def _guarded(part: Callable[[], dict]) -> dict:
    try:
        return part()
    except Exception as error:  # a broken package may raise anything
        return {"error": _first_line(error)}


def describe_python() -> dict[str, Any]:
    return {"version": platform.python_version(), "path": sys.executable, "system": platform.platform(terse=True)}


def describe_cpu() -> dict[str, Any]:
    """Cores and memory that this process may use, limits of a container included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total, available = _memory()
    return {"name": processor_name(), "cores": cores, "memory": total, "available": available}


def processor_name() -> str:
    """The processor's model, or its architecture where the system does not tell the model."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> tuple[int, int]:
    """Total and available bytes; the total twice where the system does not tell what is available."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            limit = int(Path(limit_file).read_text())
            total, available = min(total, limit), min(available, limit)
    return total, available


def describe_java() -> dict[str, Any]:
    path = shutil.which("java")
    if path is None:
        return {"path": None, "version": None}
    ran = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20)
    lines = (ran.stderr or ran.stdout).splitlines()
    return {"path": path, "version": lines[0] if ran.returncode == 0 and lines else None}


def hub_cache() -> Path:
    """Where huggingface_hub keeps its downloads."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    return _hub_home() / "hub"


def _hub_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser()


def describe_disk() -> dict[str, Any]:
    """Free bytes where results and downloaded models go."""
    return {name: _free(folder) for name, folder in (("runs", runs_folder()), ("hub", hub_cache()))}


def _free(folder: Path) -> dict[str, Any]:
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return {"path": str(folder), "free": shutil.disk_usage(existing).free, "device": existing.stat().st_dev}


def describe_hub() -> dict[str, Any]:
    """Whether the Hub answers, whether there is a token (never which), and what the cache holds of the paper."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ON
    token = Path(os.environ.get("HF_TOKEN_PATH", _hub_home() / "token")).expanduser()
    in_environment = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return {
        "endpoint": endpoint,
        "offline": offline,
        "reached": None if offline else reach_hub(endpoint),
        "token": in_environment or token.is_file(),
        "base": is_cached(BASE),
        "experts": sum(is_cached(name) for name in EXPERTS),
    }


def reach_hub(endpoint: str, seconds: float = HUB_SECONDS) -> bool:
    """Whether the host answers in time; in a thread, because name resolution has no time limit."""
    answered = threading.Event()

    def request() -> None:
        with contextlib.suppress(OSError, ValueError):
            with contextlib.suppress(urllib.error.HTTPError):  # an answer too
                urllib.request.urlopen(f"{endpoint}/api/models/{BASE}", timeout=seconds).close()
            answered.set()

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def is_cached(repository: str) -> bool:
    """Whether the cache has files of a model of the Hub, none of them partly downloaded."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    return any((folder / "snapshots").glob("*/*")) and not any((folder / "blobs").glob("*.incomplete"))


def compare_packages() -> dict[str, Any]:
    """The installed packages against requirements.lock: how many are the same, which differ, which are missing."""
    same, other, missing = 0, {}, []
    for name, locked in read_lock(REPOSITORY / "requirements.lock").items():
        try:
            installed = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if installed == locked:
            same += 1
        else:
            other[name] = [installed, locked]
    return {"same": same, "other": other, "missing": missing}


def read_lock(file: Path) -> dict[str, str]:
    """Read a lock file as package -> version, without the lines for other systems."""
    versions = {}
    for line in file.read_text().splitlines():
        pinned, _, marker = line.partition("#")[0].partition(";")
        if "==" in pinned and ("linux" not in marker or sys.platform == "linux"):
            name, _, version = pinned.strip().partition("==")
            versions[name] = version
    return versions


def describe_torch() -> dict[str, Any]:
    """The version of PyTorch, the GPUs that it can use, and those that it cannot."""
    try:
        import torch
    except Exception as error:
        message = _first_line(error)
        return {"version": None, "cuda": None, "devices": [], "unused": _list_nvidia(), "error": message}
    devices = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        properties = torch.cuda.get_device_properties(index)
        devices.append({"name": properties.name, "memory": total, "free": free, "bf16": properties.major >= 8})
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "devices": devices,
        "unused": [] if devices else _list_nvidia(),
    }


def _list_nvidia() -> list[str]:
    """NVIDIA GPUs by their driver's own tool, for a torch that cannot use them."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        ran = subprocess.run(query, capture_output=True, text=True, timeout=10)
        return [line.strip() for line in ran.stdout.splitlines() if line.strip()] if ran.returncode == 0 else []
    return []


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
