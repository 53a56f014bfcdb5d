"""Facts about this machine as plain JSON values: sizes in bytes, times in seconds, speeds in operations a second.

Standard library only; whatever cannot be found out is an `error` in its part and stops nothing.
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
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
BASE = "llava-hf/llava-1.5-7b-hf"
EXPERT_TASKS = ("ScienceQA", "ImageNet", "VQAv2", "REC", "OCRVQA", "VizWiz", "flickr30k", "IconQA")
EXPERTS = tuple(f"AuroraZengfh/LLaVA_7B_lora_r16_{task}" for task in EXPERT_TASKS)
HUB_SECONDS = 4.0  # that the Hub has for its answer
ON = ("1", "ON", "YES", "TRUE")  # as the Hub's library reads its switches


def look() -> dict[str, Any]:
    """Every part of the machine, one after the other; only the Hub is asked over a network."""
    parts: dict[str, Callable[[], dict]] = {
        "python": look_at_python,
        "torch": look_at_torch,
        "cpu": look_at_cpu,
        "java": look_at_java,
        "disk": look_at_disk,
        "hub": look_at_hub,
        "packages": look_at_packages,
        "results": look_at_results,
    }
    return {name: _guarded(part) for name, part in parts.items()}


def _guarded(part: Callable[[], dict]) -> dict:
    try:
        return part()
    except Exception as error:  # a broken package may raise anything
        return {"error": first_line(error)}


def look_at_python() -> dict[str, Any]:
    return {"version": platform.python_version(), "path": sys.executable, "system": platform.platform(terse=True)}


def look_at_cpu() -> dict[str, Any]:
    """Cores and memory that this process may use, limits of a container included."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    total, available = _memory()
    return {"name": _processor(), "cores": able, "memory": total, "available": available}


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> tuple[int, int | None]:
    """Total and available bytes; available is None where the system does not tell."""
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(told[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            limit = int(Path(place).read_text())
            total, available = min(total, limit), min(available, limit)
    return total, available


def look_at_java() -> dict[str, Any]:
    path = shutil.which("java")
    if path is None:
        return {"path": None, "version": None}
    ran = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=20)
    lines = (ran.stderr or ran.stdout).splitlines()
    return {"path": path, "version": lines[0] if ran.returncode == 0 and lines else None}


def runs_folder() -> Path:
    """Where results live by default: ROBUSTMERGE_RUNS, a relative one starting at the repository."""
    return REPOSITORY / Path(os.environ.get("ROBUSTMERGE_RUNS", "runs")).expanduser()


def hub_cache() -> Path:
    """Where the Hub's library keeps what it fetched."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    return _hub_home() / "hub"


def _hub_home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser()


def look_at_disk() -> dict[str, Any]:
    """Free bytes where results and fetched models go."""
    return {name: _free(folder) for name, folder in (("runs", runs_folder()), ("hub", hub_cache()))}


def _free(folder: Path) -> dict[str, Any]:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return {"path": str(folder), "free": shutil.disk_usage(there).free, "device": there.stat().st_dev}


def look_at_hub() -> dict[str, Any]:
    """Whether the Hub answers, whether there is a token (never which), and what of the paper's is in the cache."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ON
    token = Path(os.environ.get("HF_TOKEN_PATH", _hub_home() / "token")).expanduser()
    named = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    return {
        "endpoint": endpoint,
        "offline": offline,
        "reached": None if offline else ask_hub(endpoint),
        "token": named or token.is_file(),
        "base": is_cached(BASE),
        "experts": sum(is_cached(name) for name in EXPERTS),
    }


def ask_hub(endpoint: str, seconds: float = HUB_SECONDS) -> bool:
    """Whether anything answers there in time. In a thread: looking up a name knows no limit of its own."""
    answered = []

    def ask() -> None:
        with contextlib.suppress(OSError, ValueError):
            with contextlib.suppress(urllib.error.HTTPError):  # an answer too
                urllib.request.urlopen(f"{endpoint}/api/models/{BASE}", timeout=seconds).close()
            answered.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(answered)


def is_cached(repository: str) -> bool:
    """Whether the cache has files of a model of the Hub, none of them half fetched."""
    folder = hub_cache() / f"models--{repository.replace('/', '--')}"
    whole = any((folder / "snapshots").glob("*/*"))
    return whole and not any((folder / "blobs").glob("*.incomplete"))


def look_at_packages() -> dict[str, Any]:
    """The installed packages against requirements.lock: how many are as there, which differ, which are missing."""
    same, other, missing = 0, {}, []
    for name, wanted in read_lock(REPOSITORY / "requirements.lock").items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if found == wanted:
            same += 1
        else:
            other[name] = [found, wanted]
    return {"same": same, "other": other, "missing": missing}


def read_lock(file: Path) -> dict[str, str]:
    """Package -> version of the lines that are meant for this system."""
    found = {}
    for line in file.read_text().splitlines():
        pinned, _, marker = line.partition("#")[0].partition(";")
        if "==" in pinned and ("linux" not in marker or sys.platform == "linux"):
            name, _, version = pinned.strip().partition("==")
            found[name] = version
    return found


def look_at_results() -> dict[str, Any]:
    """Finished results by run folder and kind, and the reports."""
    from pipeline.tools.runs import KINDS, find_roots

    runs = runs_folder()
    found = {}
    roots = find_roots(runs) if runs.is_dir() else []
    for root in (root for root in roots if root.parent not in roots):
        counts = {kind: sum(1 for _ in (root / kind).rglob("*manifest.json")) for kind in KINDS}
        counts["reports"] = sum(1 for _ in root.glob("reports/*/report.md"))
        found[root.relative_to(runs).as_posix()] = {kind: count for kind, count in counts.items() if count}
    return {"path": str(runs), "roots": found}


def look_at_torch() -> dict[str, Any]:
    """The version, the GPUs that it can use, those that it cannot, and how fast matrices are multiplied."""
    found: dict[str, Any] = {"version": None, "cuda": None, "devices": [], "unused": [], "speed": None}
    try:
        import torch
    except Exception as error:
        return {**found, "unused": _list_nvidia(), "error": first_line(error)}
    found |= {"version": torch.__version__, "cuda": torch.version.cuda or torch.version.hip}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            described = torch.cuda.get_device_properties(index)
            device = {"name": described.name, "memory": total, "free": free, "bf16": described.major >= 8, "speed": 0.0}
            with contextlib.suppress(RuntimeError):  # others may have taken its memory
                device["speed"] = measure_speed(f"cuda:{index}", torch.float16, 8192)
            found["devices"].append(device)
    else:
        found["unused"] = _list_nvidia()
    found["mps"] = torch.backends.mps.is_available()
    found["speed"] = measure_speed("cpu", torch.float32, 1024)
    return found


def measure_speed(device: str, dtype: Any, size: int) -> float:
    """Operations a second of a product of two square matrices, the best of five after one to warm up."""
    import torch

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    one = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(6):
        wait()
        started = time.perf_counter()
        torch.matmul(one, one)
        wait()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _list_nvidia() -> list[str]:
    """NVIDIA GPUs by their driver's own tool, for a torch that cannot use them."""
    if shutil.which("nvidia-smi") is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        ran = subprocess.run(asked, capture_output=True, text=True, timeout=10)
        return [line.strip() for line in ran.stdout.splitlines() if line.strip()] if ran.returncode == 0 else []
    return []


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
