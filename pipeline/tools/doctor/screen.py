"""The doctor's screen: what is missing on this machine, what it has room for, what to type."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.tools.doctor.machine import EXPERTS, gather_facts
from robustmerge.stage.tables import format_size

OLDEST = (3, 11)
SETUP = "bash scripts/setup.sh"
LITTLE_DISK = 5e9  # bytes where results go: the mini benchmark and its environment need some 2 GB
MAX_NAMES = 4  # of packages and GPUs in one sentence

WIDTH = 118
MARKS = {"ok": "ok", "note": "--", "bad": "!!", "yes": "yes", "no": "no"}
PAPER = "model=llava15_7b benchmark=mm_mergebench"
RELEASED = f"{PAPER} expert_set=released"


@dataclass(frozen=True)
class Finding:
    """One entry of the screen. state: ok, note or bad for a part of the machine; yes or no for a piece of work."""

    name: str
    text: str
    state: str = "ok"
    remedy: str = ""


@dataclass(frozen=True)
class Work:
    """A part of the paper's work and the bytes it needs: memory, disk for results, downloads, memory of one GPU."""

    name: str
    command: str
    memory: float = 0.0
    disk: float = 0.0
    downloads: tuple[str, ...] = ()  # of BYTES
    gpu: float = 0.0


BYTES = {"base": 14.1e9, "experts": 1.0e9}  # the 7B checkpoint in fp16; the eight released experts
# Measured on two cores (mini, merging) and one H100 (evaluating); training at 7B is an estimate.
WORKS = (
    Work("Mini benchmark", "bash scripts/quickstart.sh", memory=2e9, disk=2e9),
    Work("Merging at 7B", f"python scripts/merge.py {RELEASED}", memory=0.8e9, downloads=("experts",)),
    Work("Evaluating at 7B", f"bash scripts/merge_eval.sh {RELEASED}", downloads=("base", "experts"), gpu=14.8e9),
    Work("Training at 7B", f"bash scripts/train_all.sh {PAPER}", downloads=("base",), gpu=24e9),
)


def main(description: str | None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print facts and findings as JSON")
    facts = gather_facts()
    machine, works = describe_machine(facts), [judge_work(work, facts) for work in WORKS]
    if parser.parse_args().json:
        findings = {"machine": [vars(finding) for finding in machine], "paper": [vars(finding) for finding in works]}
        print(json.dumps({"facts": facts, **findings}, indent=1))
        return
    print(format_findings("This machine", machine))
    print()
    print(format_findings("What of the paper it has room for", works))


def describe_machine(facts: Mapping[str, Any]) -> list[Finding]:
    """The findings of every part of the machine."""
    parts = {
        "python": _python,
        "torch": _torch,
        "cpu": _cpu,
        "java": _java,
        "disk": _disk,
        "hub": _hub,
        "packages": _packages,
    }
    findings: list[Finding] = []
    for name, describe in parts.items():
        part = facts[name]
        broken = "error" in part and "version" not in part
        findings += [Finding(name, f"could not be examined: {part['error']}", "bad")] if broken else describe(part)
    return findings


def judge_work(work: Work, facts: Mapping[str, Any]) -> Finding:
    """What a piece of work needs, and its command or what the machine has too little of."""
    torch, disk, hub = facts["torch"], facts["disk"], facts["hub"]
    cached = {"base": hub.get("base"), "experts": hub.get("experts") == len(EXPERTS)}
    download = sum(BYTES[name] for name in work.downloads if not cached[name])
    needs = {
        "memory": (work.memory, facts["cpu"].get("available", 0)),
        "disk for results": (work.disk, disk.get("runs", {}).get("free", 0)),
        "disk for the Hub's cache": (download, disk.get("hub", {}).get("free", 0)),
        "memory on one GPU": (work.gpu, max((device["memory"] for device in torch.get("devices", [])), default=0)),
    }
    text = "needs " + ", ".join(f"{format_size(need)} of {what}" for what, (need, _) in needs.items() if need)
    missing = [f"{what} ({format_size(has)})" for what, (need, has) in needs.items() if has < need]
    missing += ["PyTorch"] if torch.get("version") is None else []
    if missing:
        return Finding(work.name, f"{text}; too little here: {', '.join(missing)}", "no")
    return Finding(work.name, text, "yes", work.command)


def _enumerate(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _python(part: Mapping[str, Any]) -> list[Finding]:
    text = f"{part['version']} on {part['system']} ({part['path']})"
    if tuple(int(number) for number in part["version"].split(".")[:2]) < OLDEST:
        remedy = f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; install it, then: {SETUP}"
        return [Finding("Python", text, "bad", remedy)]
    return [Finding("Python", text)]


def _torch(part: Mapping[str, Any]) -> list[Finding]:
    if part["version"] is None:
        findings = [Finding("PyTorch", f"not there ({part['error']})", "bad", f"{SETUP}, then .venv/bin/python")]
    else:
        build = f"built for CUDA {part['cuda']}" if part["cuda"] else "built for CPU only"
        findings = [Finding("PyTorch", f"{part['version']}, {build}")]
    for device in part["devices"]:
        bf16 = "bf16 and fp16" if device["bf16"] else "fp16, but no bf16, in which training is set up"
        memory = f"{format_size(device['memory'])}, {format_size(device['free'])} of it free"
        findings.append(Finding("GPU", f"{device['name']}, {memory}; {bf16}"))
    if part["unused"]:
        remedy = "install a CUDA build of PyTorch (pytorch.org/get-started), or mend the driver"
        findings.append(
            Finding("GPU", f"there, but PyTorch cannot use it: {_enumerate(part['unused'])}", "bad", remedy)
        )
    elif not part["devices"]:
        findings.append(
            Finding("GPU", "none that CUDA or ROCm can use: the mini benchmark and all merging run on the CPU", "note")
        )
    return findings


def _cpu(part: Mapping[str, Any]) -> list[Finding]:
    memory = f"{format_size(part['memory'])} of memory, {format_size(part['available'])} of it available"
    return [Finding("CPU", f"{part['cores']} cores ({part['name']}), {memory}")]


def _java(part: Mapping[str, Any]) -> list[Finding]:
    if part["version"]:
        return [Finding("Java", f"{part['version']}: METEOR and the official caption scores can be computed")]
    what = "not on PATH" if part["path"] is None else f"{part['path']} does not run"
    text = f"{what}: METEOR and the official caption scores are left out; BLEU, ROUGE-L, CIDEr and all else work"
    return [Finding("Java", text, "note", "apt-get install default-jre-headless, or any Java from 8 on")]


def _disk(part: Mapping[str, Any]) -> list[Finding]:
    runs, hub = part["runs"], part["hub"]
    same = "the same disk" if runs["device"] == hub["device"] else f"{format_size(hub['free'])} free"
    text = f"{format_size(runs['free'])} free for results ({runs['path']}); the Hub's cache, {hub['path']}: {same}"
    if runs["free"] < LITTLE_DISK:
        remedy = "results go elsewhere with ROBUSTMERGE_RUNS=FOLDER, the cache with HF_HOME"
        return [Finding("Disk", text, "bad", remedy)]
    return [Finding("Disk", text)]


def _hub(part: Mapping[str, Any]) -> list[Finding]:
    token = "a token is there" if part["token"] else "no token (only for gated or private repositories, and to push)"
    cached = (
        f"in the cache: {'the' if part['base'] else 'no'} 7B base, {part['experts']} of {len(EXPERTS)} released experts"
    )
    if part["offline"]:
        return [Finding("Hub", f"not asked, HF_HUB_OFFLINE is set; {token}; {cached}", "note")]
    if not part["reached"]:
        remedy = "give local folders instead of names, or fill the cache elsewhere and set HF_HUB_OFFLINE=1"
        return [Finding("Hub", f"{part['endpoint']} does not answer; {token}; {cached}", "note", remedy)]
    return [Finding("Hub", f"{part['endpoint']} answers; {token}; {cached}")]


def _packages(part: Mapping[str, Any]) -> list[Finding]:
    texts = [f"{part['same']} as in requirements.lock"]
    if part["other"]:
        names = [f"{name} {installed} (not {locked})" for name, (installed, locked) in part["other"].items()]
        texts.append(f"{len(names)} of another version: {_enumerate(names)}")
    if part["missing"]:
        texts.append(f"{len(part['missing'])} missing: {_enumerate(part['missing'])}")
    state = "bad" if part["missing"] else "note" if part["other"] else "ok"
    return [Finding("Packages", "; ".join(texts), state, "" if state == "ok" else f"{SETUP}, then .venv/bin/python")]


def format_findings(title: str, findings: list[Finding]) -> str:
    """A block of the screen: mark, name and text of every finding, and below it what to do."""
    widest = max(len(finding.name) for finding in findings)
    indent = " " * (2 + 6 + widest + 2)
    lines = [title]
    for finding in findings:
        head = f"  {MARKS[finding.state]:<6}{finding.name:<{widest}}  "
        lines += textwrap.wrap(finding.text, WIDTH, initial_indent=head, subsequent_indent=indent)
        if finding.remedy:
            lines += textwrap.wrap(finding.remedy, WIDTH, initial_indent=indent + "-> ", subsequent_indent=indent)
    return "\n".join(lines)
