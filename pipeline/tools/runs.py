"""Results on disk: list them with what differs from the defaults, remove those that nothing uses."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from eval.settings import OFFICIAL_NAMES
from pipeline.plan import Plan
from pipeline.program import compose, runs_folder
from robustmerge.stage.address import Address, get_mapping, is_locked, read_manifest
from robustmerge.stage.files import parse_json, read_text
from robustmerge.stage.records import Score, read_score
from robustmerge.stage.settings import UserError
from robustmerge.stage.tables import format_columns, format_size
from robustmerge.stage.terminal import confirm
from robustmerge.stage.text import quote

TITLES = ("address", "differs from the defaults in", "score (tasks)", "size", "commit")
KINDS = ("data", "base", "experts", "merged", "predictions", "scores", "general")


@dataclass(frozen=True)
class Result:
    """One result on disk. identity and record are empty while it is unfinished."""

    root: Path
    path: Path
    identity: dict
    record: dict

    @property
    def short(self) -> str:
        return self.path.relative_to(self.root).as_posix()

    @property
    def kind(self) -> str:
        return self.short.split("/")[0]

    def size(self) -> int:
        files = [self.path] if self.path.is_file() else [file for file in self.path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files)


def find_results(root: Path) -> Iterator[Result]:
    """Find all results under one run folder, in the order of the stages; each kind sorted by name."""
    for kind in KINDS:
        if not (root / kind).is_dir():
            continue
        if kind in ("predictions", "scores"):
            paths = [p for p in (root / kind).rglob("*.json*") if p.is_file()]
            paths = [p for p in paths if not p.name.endswith((".manifest.json", ".lock", ".seconds"))]
        elif kind == "general":
            paths = [manifest.parent for manifest in (root / kind).rglob("manifest.json")]
        else:
            paths = [p for p in (root / kind).iterdir() if p.is_dir()]
        for path in sorted(paths):
            manifest = path / "manifest.json" if path.is_dir() else path.with_suffix(".manifest.json")
            contents = read_manifest(manifest) if manifest.exists() else {"identity": {}, "record": {}}
            yield Result(root, path, contents["identity"], contents["record"])


def find_roots(runs: Path) -> list[Path]:
    """Every `<benchmark>-<model>` folder: of the full profile under `runs`, of others under `runs/<profile>`."""
    folders = [*runs.glob("*"), *runs.glob("*/*")]
    return sorted(folder for folder in folders if any((folder / kind).is_dir() for kind in KINDS))


@lru_cache
def _defaults(root: Path) -> Mapping[str, dict]:
    """`kind/name` -> settings of the default configuration of that run folder."""
    from pipeline.sweep import make_plans

    benchmark, _, model = root.name.partition("-")
    profile = "full" if root.parent == runs_folder() else root.parent.name
    chosen = [f"benchmark={benchmark}", f"model={model}", f"profile={profile}", "methods=all"]
    try:
        (plan,) = make_plans([compose("train_all", chosen)])
        addresses = [*_list_trained_base(plan), *plan.experts.values(), *map(plan.data, plan.config.tasks)]
    except UserError:  # a benchmark, a model or a package that is gone
        return {}
    addresses += [address for address in [plan.multi_task] if address]
    addresses += [plan.merged(method) for method in plan.config.methods]
    return {address.short.rpartition("-")[0]: address.identity for address in addresses}


def _list_trained_base(plan: Plan) -> list[Address]:
    """The parts of the plan's base as it would be trained here; none of a published model."""
    model = plan.config.model
    if model.base is None:
        return []
    trained = dataclasses.replace(model, checkpoint=None, base=dataclasses.replace(model.base, train=True))
    return Plan(dataclasses.replace(plan.config, model=trained)).base_addresses


def describe(result: Result) -> str:
    """Describe a result by what differs from the defaults; `unfinished` without a manifest."""
    from pipeline.config import list_differences

    if not result.identity:
        return "unfinished"
    default = _defaults(result.root).get(result.short.rpartition("-")[0])
    if default is None or result.kind in ("predictions", "scores"):
        return ""
    settings = list_differences(get_mapping(result.identity, "settings"), default.get("settings", {}))
    inputs, usual = get_mapping(result.identity, "inputs"), default.get("inputs", {})
    changed = {name.split("/")[0] for name, digest in inputs.items() if usual.get(name) != digest}
    return ", ".join(
        [*(f"{key}={json.dumps(value)}" for key, value in settings), *(f"other {name}" for name in sorted(changed))]
    )


def format_score(result: Result) -> str:
    """Format the score of a score file, or for a source the mean over its scored tasks, if each has one score."""
    if result.kind in ("scores", "general"):
        file = result.path if result.kind == "scores" else result.path / "score.json"
        value = read_score(file).value if file.exists() else None
        return "" if value is None else f"{value:.2f}"
    name = result.path.name
    stem, _, hash8 = name.rpartition("-")
    folders = {"base": f"zero_shot-{hash8}", "experts": f"expert/{name}", "merged": f"merged/{name}"}
    folder = name if stem == "multi_task" else folders.get(result.kind)
    if folder is None:
        return ""
    joint = _find_joint(result.root, folder)
    scores = [
        read_score(file.with_name(file.name.replace(".manifest", "")))
        for file in (result.root / "scores" / folder).glob("*.manifest.json")
        if get_mapping(read_manifest(file)["identity"], "inputs").get("predictions") not in joint
    ]
    values = [(score.task, score.value) for score in scores if score.value is not None and _is_corrected(score)]
    if len(dict(values)) < len(values):
        return "several"
    return f"{fmean(dict(values).values()):.2f} ({len(values)})" if values else ""


def _is_corrected(score: Score) -> bool:
    """Whether it is a score of all questions, and not by the metric of a published script."""
    return not score.n_asked and score.metric not in (*OFFICIAL_NAMES, "mean_of_seven")


def _find_joint(root: Path, folder: str) -> set[str]:
    """Fingerprints of a source's answers that could be a class of any task (protocol=joint)."""
    files = (root / "predictions" / folder).glob("*.manifest.json")
    identities = [read_manifest(file)["identity"] for file in files]
    chosen = [identity for identity in identities if get_mapping(identity, "settings").get("pooled")]
    return {Address(root, root, identity).fingerprint for identity in chosen}


def print_results(roots: Sequence[Path], kinds: Sequence[str]) -> None:
    """Print the results, one table per run folder."""
    for root in roots:
        rows = [
            (
                one.short,
                describe(one),
                format_score(one),
                format_size(one.size()),
                str(one.record.get("commit") or "")[:8],
            )
            for one in find_results(root)
            if one.kind in kinds
        ]
        if rows:
            print("\n  ".join([f"\n{root}", *format_columns(TITLES, rows, text=range(len(TITLES)))]))


def clean(roots: Sequence[Path], sure: bool) -> None:
    """Remove what no report uses. Raises UserError while a process runs: no report uses its inputs yet."""
    unused = [result for root in roots for result in find_unused(root)]
    if not unused:
        print("nothing to remove: every result is used by a report")
        return
    for result in unused:
        print(f"  {result.root.name}/{result.short}  {format_size(result.size())}")
    total = format_size(sum(result.size() for result in unused))
    if not sure and not confirm(f"remove these {len(unused)} results ({total})?"):
        print("nothing removed")
        return
    still_unused = {result.path for root in roots for result in find_unused(root)}  # a report may have been made since
    for result in unused:
        if result.path in still_unused:
            remove(result)
    print(f"removed {len(unused)} results ({total})")


def find_unused(root: Path) -> list[Result]:
    """Find the results that no report of a run folder uses."""
    for lock in root.rglob("*.lock"):
        if is_locked(lock.with_suffix("")):
            raise UserError(f"{lock.with_suffix('')} is in use by a running process; clean up when none runs")
    used = {address for file in root.glob("reports/*/addresses.json") for address in _read_addresses(file)}
    return [result for result in find_results(root) if result.short not in used]


def _read_addresses(file: Path) -> list[str]:
    """The addresses of the results that a report uses. Raises UserError if the file does not tell them."""
    what = "the addresses that a report uses"
    remedy = "write that report again (scripts/report.py), or remove its folder"
    try:
        addresses = parse_json(read_text(file, what))
    except ValueError as error:
        raise UserError(f"{file} cannot be read as {what}: {error}; {remedy}") from error
    if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
        raise UserError(f"{file} cannot be read as {what}: it holds {quote(addresses)}; {remedy}")
    return addresses


def remove(result: Result) -> None:
    """Remove a result, its manifest first: a half-removed result is an unfinished one."""
    if result.path.is_dir():
        (result.path / "manifest.json").unlink(missing_ok=True)
        shutil.rmtree(result.path)
    else:
        result.path.with_suffix(".manifest.json").unlink(missing_ok=True)
        result.path.unlink()
    Address(result.root, result.path, result.identity).seconds.unlink(missing_ok=True)


def main(description: str | None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="show one kind only (default: all but predictions and scores)")
    parser.add_argument("--clean", action="store_true", help="remove what no report uses")
    parser.add_argument("--yes", action="store_true", help="with --clean: do not ask")
    arguments = parser.parse_args()
    runs = runs_folder()
    roots = find_roots(runs) if runs.is_dir() else []
    if not roots:
        print(f"no results yet under {runs}; make some with: bash scripts/train_all.sh")
    elif arguments.clean:
        clean(roots, arguments.yes)
    else:
        print_results(roots, (arguments.kind,) if arguments.kind else KINDS[:4])
