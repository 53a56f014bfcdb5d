"""Facts about a machine in words: what is there, what is missing, what does without it, what to type."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OLDEST = (3, 11)
SETUP = "bash scripts/setup.sh"
LITTLE_DISK = 5e9  # where results go: the mini line and its environment need some 2 GB
FEW = 4  # names that are listed

WIDTH = 118
MARKS = {"ok": "ok", "note": "--", "bad": "!!", "yes": "yes", "no": "no", "slow": "slow"}


@dataclass(frozen=True)
class Finding:
    """One line of the screen. state: ok, note, bad for the machine; yes, slow, no for the paper."""

    name: str
    text: str
    state: str = "ok"
    remedy: str = ""


def describe(facts: Mapping[str, Any]) -> list[Finding]:
    """The machine, a finding a part."""
    parts = {
        "python": _python,
        "torch": _torch,
        "cpu": _cpu,
        "java": _java,
        "disk": _disk,
        "hub": _hub,
        "packages": _packages,
        "results": _results,
    }
    found: list[Finding] = []
    for name, tell in parts.items():
        part = facts[name]
        broken = "error" in part and "version" not in part
        found += [Finding(name, f"could not be looked at: {part['error']}", "bad")] if broken else tell(part)
    return found


def gigabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 10e9 else f"{n_bytes / 1e9:.0f} GB"


def few(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more


def _python(part: Mapping[str, Any]) -> list[Finding]:
    text = f"{part['version']} on {part['system']} ({part['path']})"
    if tuple(int(number) for number in part["version"].split(".")[:2]) < OLDEST:
        remedy = f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; install it, then: {SETUP}"
        return [Finding("Python", text, "bad", remedy)]
    return [Finding("Python", text)]


def _torch(part: Mapping[str, Any]) -> list[Finding]:
    if part["version"] is None:
        found = [Finding("PyTorch", f"not there ({part['error']})", "bad", f"{SETUP}, then .venv/bin/python")]
    else:
        build = f"built for CUDA {part['cuda']}" if part["cuda"] else "built for CPU only"
        found = [Finding("PyTorch", f"{part['version']}, {build}")]
    for device in part["devices"]:
        bf16 = "bf16 and fp16" if device["bf16"] else "fp16, but no bf16, in which training is set up"
        memory = f"{gigabytes(device['memory'])}, {gigabytes(device['free'])} of it free"
        speed = f"{device['speed'] / 1e12:.0f} TFLOP/s in fp16" if device["speed"] else "busy: its speed is not known"
        found.append(Finding("GPU", f"{device['name']}, {memory}; {bf16}; {speed}"))
    if part["unused"]:
        remedy = "install a CUDA build of PyTorch (pytorch.org/get-started), or mend the driver"
        found.append(Finding("GPU", f"there, but PyTorch cannot use it: {few(part['unused'])}", "bad", remedy))
    elif not part["devices"]:
        apple = " (Apple's GPU is not used)" if part.get("mps") else ""
        found.append(Finding("GPU", f"none{apple}: the mini benchmark and all merging run on the CPU", "note"))
    return found


def _cpu(part: Mapping[str, Any]) -> list[Finding]:
    free = f", {gigabytes(part['available'])} of it available" if part["available"] else ""
    return [Finding("CPU", f"{part['cores']} cores ({part['name']}), {gigabytes(part['memory'])} of memory{free}")]


def _java(part: Mapping[str, Any]) -> list[Finding]:
    if part["version"]:
        return [Finding("Java", f"{part['version']}: METEOR and the official caption scores can be had")]
    what = "not on PATH" if part["path"] is None else f"{part['path']} does not run"
    text = f"{what}: METEOR and the official caption scores are left out; BLEU, ROUGE-L, CIDEr and all else work"
    return [Finding("Java", text, "note", "apt-get install default-jre-headless, or any Java from 8 on")]


def _disk(part: Mapping[str, Any]) -> list[Finding]:
    runs, hub = part["runs"], part["hub"]
    same = "the same disk" if runs["device"] == hub["device"] else f"{gigabytes(hub['free'])} free"
    text = f"{gigabytes(runs['free'])} free for results ({runs['path']}); the Hub's cache, {hub['path']}: {same}"
    if runs["free"] < LITTLE_DISK:
        return [
            Finding("Disk", text, "bad", "results go elsewhere with ROBUSTMERGE_RUNS=FOLDER, the cache with HF_HOME")
        ]
    return [Finding("Disk", text)]


def _hub(part: Mapping[str, Any]) -> list[Finding]:
    token = "a token is there" if part["token"] else "no token (only for gated or private repositories, and to push)"
    cached = f"in the cache: {'the' if part['base'] else 'no'} 7B base, {part['experts']} of 8 released experts"
    if part["offline"]:
        return [Finding("Hub", f"not asked, HF_HUB_OFFLINE is set; {token}; {cached}", "note")]
    if not part["reached"]:
        remedy = "give local folders instead of names, or fill the cache elsewhere and set HF_HUB_OFFLINE=1"
        return [Finding("Hub", f"{part['endpoint']} does not answer; {token}; {cached}", "note", remedy)]
    return [Finding("Hub", f"{part['endpoint']} answers; {token}; {cached}")]


def _packages(part: Mapping[str, Any]) -> list[Finding]:
    told = [f"{part['same']} as in requirements.lock"]
    if part["other"]:
        named = [f"{name} {found} (not {wanted})" for name, (found, wanted) in part["other"].items()]
        told.append(f"{len(named)} of another version: {few(named)}")
    if part["missing"]:
        told.append(f"{len(part['missing'])} missing: {few(part['missing'])}")
    state = "bad" if part["missing"] else "note" if part["other"] else "ok"
    return [Finding("Packages", "; ".join(told), state, "" if state == "ok" else f"{SETUP}, then .venv/bin/python")]


def _results(part: Mapping[str, Any]) -> list[Finding]:
    if not part["roots"]:
        return [Finding("Results", f"none yet under {part['path']}", "note", "bash scripts/quickstart.sh")]
    each = [f"{root}: {', '.join(f'{n} {kind}' for kind, n in made.items())}" for root, made in part["roots"].items()]
    return [Finding("Results", f"under {part['path']}, finished: {'; '.join(each)}")]


def show(title: str, findings: list[Finding]) -> str:
    """A block of the screen: mark, name and text of every finding, and below it what to do."""
    widest = max(len(finding.name) for finding in findings)
    start = 2 + 6 + widest + 2
    lines = [title]
    for finding in findings:
        head = f"  {MARKS[finding.state]:<6}{finding.name:<{widest}}  "
        lines += textwrap.wrap(finding.text, WIDTH, initial_indent=head, subsequent_indent=" " * start)
        if finding.remedy:
            indent = " " * start
            lines += textwrap.wrap(finding.remedy, WIDTH, initial_indent=indent + "-> ", subsequent_indent=indent)
    return "\n".join(lines)
