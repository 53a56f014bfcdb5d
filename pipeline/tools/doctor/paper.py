"""What of the paper a machine can run, and in how many hours: what was measured, and estimates that say so.

An estimate is arithmetic: operations of the work, over the share of this machine's own speed (a product of two
matrices, timed by `machine.py`) that such work reaches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.tools.doctor.machine import REPOSITORY
from pipeline.tools.doctor.text import Finding, gigabytes

MERGING = REPOSITORY / "results" / "bench_merge" / "table.json"
ANSWERING = REPOSITORY / "results" / "bench_eval" / "gpu" / "table.json"

# Test questions of the tasks whose number is known from their collections; the five others come on top.
QUESTIONS = {
    "scienceqa": 4241,
    "imagenet": 5050,
    "vizwiz": 7750,
    "aokvqa": 1145,
    "imagenet_r": 30000,
    "screen2words": 4310,
    "tabmwp": 7686,
}
# Training rows, likewise; VQAv2, OCR-VQA and IconQA come on top.
ROWS = {"scienceqa": 12726, "imagenet": 129833, "rec": 111000, "vizwiz": 23431, "flickr30k": 40000}

PARAMETERS = 6.7e9  # of the language model, that every token passes
TOKENS = 650  # of a question: 576 of the picture, and some 75 of text and answer
ANSWER_WORK = 2 * PARAMETERS * TOKENS  # operations: a multiplication and an addition a parameter and token
ROW_WORK = 6 * PARAMETERS * TOKENS  # forward, forward again for checkpointing, backward to the activations
SHARE = 0.35  # of a product of matrices that a whole model reaches
H100_SPEED = 746e12  # operations a second of such a product in fp16, as doctor.py measures it on an H100

BASE_BYTES, EXPERT_BYTES = 14.1e9, 1.0e9  # the 7B checkpoint in fp16; eight experts with their projectors
ONE_BY_ONE = 14.8e9  # GPU memory of the 7B base and one question, measured
CPU_MEMORY = 16e9  # of the base in fp16
TRAINING_MEMORY = 24e9  # of a GPU: base, states of adapter and projector, one row's activations; not measured
MINI_DISK, MINI_MEMORY = 2e9, 2e9
METHODS = 5  # rows of table 2 that are merges
RELEASED = "model=llava15_7b benchmark=mm_mergebench expert_set=released"
LOOK = f"a look at it: python scripts/predict.py {RELEASED} source=merged/robustmerge device=cpu limit=8"


def estimate(facts: Mapping[str, Any]) -> list[Finding]:
    """One finding a piece of the paper; state yes, slow or no."""
    torch, cpu = facts["torch"], facts["cpu"]
    disk = facts["disk"].get("runs", {}).get("free", 0)
    memory = cpu.get("available") or cpu.get("memory") or 0
    ready = torch.get("version") is not None
    found = [_mini(memory, disk), _merging(memory)]
    found = found if ready else [Finding(one.name, one.text, "no", "PyTorch is missing") for one in found]
    return [*found, _answering(torch, memory, _room(facts)), _training(torch)]


def _mini(memory: float, disk: float) -> Finding:
    text = "the whole line on a small real LLaVA: 20 minutes (measured on two cores), 2 GB of memory, 2 GB of disk"
    fits = memory >= MINI_MEMORY and disk >= MINI_DISK
    return Finding("Mini benchmark", text, "yes" if fits else "no", "bash scripts/quickstart.sh" if fits else "")


def _merging(memory: float) -> Finding:
    taken = {row["name"]: row for row in _read(MERGING).get("rows", [])}
    shown = {"robustmerge": "RobustMerge", "ties": "TIES", "knots_ties": "KnOTS-TIES"}
    times = [f"{title} {_seconds(taken[name]['wall'])}" for name, title in shown.items() if name in taken]
    peak = max((taken[name]["private"] for name in shown if name in taken), default=400) * 2**20
    measured = f": {', '.join(times)} (measured on two cores, results/bench_merge)" if times else ""
    text = f"eight 7B experts, no GPU needed{measured}; {gigabytes(peak)} of memory, {gigabytes(EXPERT_BYTES)} to fetch"
    fits = memory >= 2 * peak
    return Finding(
        "Merging at 7B", text, "yes" if fits else "no", f"python scripts/merge.py {RELEASED}" if fits else ""
    )


def _answering(torch: Mapping[str, Any], memory: float, room: str) -> Finding:
    """One source on the twelve tasks, and the merged rows of table 2."""
    name, asked = "Evaluating at 7B", sum(QUESTIONS.values())
    about = f"{asked // 1000 * 1000:,} questions and more (seven tasks; the sizes of five are not known)"
    devices = _able(torch, ONE_BY_ONE)
    measured = h100_rates(80e9)
    h100 = _show_range(*(asked / rate for rate in reversed(measured))) if measured else ""
    elsewhere = f"; one H100: {h100} a source (measured rate, results/bench_eval)" if measured else ""
    if devices:
        slow, fast = (sum(rates) for rates in zip(*(rates_of(device) for device in devices), strict=True))
        hours = _show_range(asked / fast, asked / slow)
        rows = _show_range(METHODS * asked / fast, METHODS * asked / slow)
        alike = measured and "H100" in devices[0]["name"]
        source = "rate measured on this GPU's kind" if alike else "~ from its speed"
        text = (
            f"{about}: ~{hours} a source on {len(devices)} GPU, ~{rows} for the {METHODS} merged rows ({source}){room}"
        )
        return Finding(name, text, "no" if room else "yes", "" if room else f"bash scripts/merge_eval.sh {RELEASED}")
    small = [device["name"] for device in torch.get("devices", [])]
    lacking = f"{small[0]} is busy, or smaller than {gigabytes(ONE_BY_ONE)}" if small else "needs a GPU"
    if not torch.get("speed") or memory < CPU_MEMORY:
        return Finding(name, f"{lacking}, or {gigabytes(CPU_MEMORY)} of memory for a look{elsewhere}", "no")
    one = ANSWER_WORK / (SHARE * torch["speed"])
    text = f"{lacking}: on this CPU ~{_seconds(one)} a question, ~{_seconds(one * asked)} a source{elsewhere}"
    return Finding(name, text + room, "slow", "" if room else LOOK)


def _room(facts: Mapping[str, Any]) -> str:
    """What is said where the base is not here and could not be fetched."""
    fits = facts["disk"].get("hub", {}).get("free", 0) >= BASE_BYTES
    return (
        ""
        if fits or facts["hub"].get("base")
        else f"; the Hub's cache has no room for the base ({gigabytes(BASE_BYTES)})"
    )


def _training(torch: Mapping[str, Any]) -> Finding:
    rows = sum(ROWS.values())
    about = f"eight experts, {rows // 1000 * 1000:,} rows and more (five tasks; the sizes of three are not known)"
    how = "~ arithmetic, never measured: 6 operations a parameter and token"
    devices = _able(torch, TRAINING_MEMORY)
    if not devices:
        hours = _seconds(rows * ROW_WORK / (SHARE * H100_SPEED))
        needs = f"needs a GPU of {gigabytes(TRAINING_MEMORY)} or more"
        return Finding("Training at 7B", f"{about}: {needs}; one H100: ~{hours} ({how}); experts are released", "no")
    hours = _seconds(rows * ROW_WORK / (SHARE * sum(device["speed"] for device in devices)))
    return Finding("Training at 7B", f"{about}: ~{hours} on {len(devices)} GPU ({how})", "yes")


def _able(torch: Mapping[str, Any], memory: float) -> list[Mapping[str, Any]]:
    """The GPUs with so much memory that were free enough to be timed."""
    return [device for device in torch.get("devices", []) if device["memory"] >= memory and device["speed"]]


def rates_of(device: Mapping[str, Any]) -> tuple[float, float]:
    """Questions a second of a GPU, lowest and highest: as measured on an H100, or less by its speed."""
    measured = h100_rates(device["memory"])
    arithmetic = SHARE * device["speed"] / ANSWER_WORK
    if not measured:
        return 0.8 * arithmetic, arithmetic
    if "H100" in device["name"]:
        return measured
    slower = min(1.0, device["speed"] / H100_SPEED)
    return measured[0] * slower, measured[1] * slower


def h100_rates(memory: float) -> tuple[float, float] | None:
    """Questions a second measured on an H100 at the best batch that fits `memory` bytes, over kinds of pictures."""
    best: dict[str, float] = {}
    for row in _read(ANSWERING).get("rows", []):
        if row["memory"] * 1e9 <= memory:
            best[row["picture"]] = max(row["rate"], best.get(row["picture"], 0.0))
    return (min(best.values()), max(best.values())) if best else None


def _read(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _show_range(low: float, high: float) -> str:
    few, many = _seconds(low), _seconds(high)
    if few == many:
        return few
    return f"{few.split()[0]} to {many}" if few.split()[1] == many.split()[1] else f"{few} to {many}"


def _seconds(seconds: float) -> str:
    """A duration with two digits, in the unit that suits it."""
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{_two_digits(seconds / length)} {unit}"
    return f"{_two_digits(seconds)} s"


def _two_digits(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{float(f'{value:.2g}'):.0f}"
