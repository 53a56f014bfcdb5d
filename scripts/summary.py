"""The last lines of every program: what was made, where, how long it took, what to type next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.further_tables import BUILTIN
from eval.settings import METRIC_NAMES
from eval.tasks import read_questions, show_answer, show_expected
from robustmerge.method import Method, OutsideMethod
from robustmerge.records import Score, read_predictions, read_score
from robustmerge.runs import REPOSITORY, Address, read_manifest
from robustmerge.unused import find_unused
from scripts.choosing import describe
from scripts.commands import command
from scripts.line import Line

SHOWN = 20  # answers of a look that are printed


def tell_training(lines: Sequence[Line], started: float) -> None:
    """After train_all and train."""
    made = {address.path: address for line in lines for address in (*line.experts.values(), line.multi_task) if address}
    _tell(f"{len(made)} trained models on {lines[0].base.short}", made.values(), lines[0].root)
    print(f"took {_minutes(time.monotonic() - started)}; next: {command('merge_eval')}")


def tell_made(addresses: Iterable[Address]) -> None:
    """After a program of one stage."""
    made = list({address.path: address for address in addresses}.values())
    if made:
        _tell(f"{len(made)} result{'s' if len(made) > 1 else ''}", made, made[0].root)


def tell_answers(lines: Sequence[Line]) -> None:
    """After predict with `limit` or `ids`: the first questions with their answers."""
    for line in (line for line in lines if not line.config.only.is_all):
        source = line.find_source(line.config.source)
        for task in source.tasks:
            examples = read_questions(line.questions(task), line.config.only)
            given = {one.question_id: one for one in read_predictions(line.predictions(source, task).path)}
            print(f"\n{source.label} on {task.name}:")
            for example in examples[:SHOWN]:
                asked = " ".join(example.text.split())
                answer, expected = show_answer(given[example.question_id]), show_expected(example)
                print(f"  {example.question_id}: {asked}\n    {answer}   (expected: {expected})")
            if len(examples) > SHOWN:
                print(f"  ... and {len(examples) - SHOWN} more")


def tell_scores(lines: Sequence[Line]) -> None:
    """After score: the value of every task, and how many answers stand behind it."""
    for line in lines:
        source = line.find_source(line.config.source)
        for task in source.tasks:
            print(_told(source.label, task.name, read_score(line.score(source, task).path)))


def tell_partial(found: Sequence[tuple[str, str, Score | None]]) -> None:
    """After score with `partial=true`: what is known so far."""
    for source, task, score in found:
        print(_told(source, task, score) if score else f"{source:<24} {task:<16}   none  (nothing is answered yet)")


def _told(source: str, task: str, score: Score) -> str:
    value = "  none" if score.value is None else f"{score.value:6.2f}"
    missed = {"empty": score.n_empty, "unparsed": score.n_unparsed, "failed": score.n_failed}
    counts = [f"{score.n_scored} of {score.n_expected} scored"]
    worth = ", worth 0" if score.metric in METRIC_NAMES else ""
    counts += [f"{count} {kind}{worth}" for kind, count in missed.items() if count]
    counts += [f"{score.metric}: without Java"] if score.metric.endswith(BUILTIN) else []
    counts += [f"a look at {score.n_expected} of {score.n_asked} questions"] if score.n_asked else []
    counts += [f"{name} {part:.2f}" for name, part in score.parts.items() if part is not None]
    return f"{source:<24} {task:<16} {value}  ({', '.join(counts)}{'; ' if score.reason else ''}{score.reason})"


def tell_choices(lines: Sequence[Line]) -> None:
    """After the val questions: the strength chosen for every method, by point where there are several."""
    for line in lines:
        own = [word for word in line.config.overrides if any(word not in other.config.overrides for other in lines)]
        point = f"{', '.join(own)}: " if own else ""
        titles = {method.name: method.title or method.name for method in line.config.methods}
        for name, choice in line.choices.items():
            print(f"{point}{titles[name]}: {describe(choice)}")


def tell_report(lines: Sequence[Line], reports: Sequence[tuple[Path, str]], started: float) -> None:
    """After merge_eval and report: the main table and where to look."""
    for folder, table in reports:
        print(f"\n{table}\n\nreport: {shown(folder / 'report.md')} (and report.html)")
    print(f"took {_minutes(time.monotonic() - started)}; everything that exists: python scripts/runs.py")


def tell_merged(folder: Path, method: Method | OutsideMethod, out: str, was_there: bool = False) -> None:
    """After one merge to a folder of one's own, typed as `out`: what went in, what came out, how to go on.

    was_there: the same merge had been made there before, so that nothing was done.
    """
    from robustmerge.merge_record import count_experts, warnings_of  # needs torch, which planning has not loaded

    record = read_manifest(folder / "manifest.json")["record"]
    title = method.title or method.name
    print(f"\n{title}: {count_experts(record['experts'])} merged into {out}")
    print("it was there already, from the same experts and settings: nothing was done again\n" if was_there else "")
    rows = merge_rows(method, record)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    written = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    rows |= {"size": written, "time": f"{record['seconds']:.1f} s" + (" when it was made" if was_there else "")}
    for key, value in rows.items():
        print(f"  {key:<20} {value}")
    for warning in warnings_of(method, record):
        print(f"\nwarning: {warning}")
    is_model = (folder / "config.json").exists()
    words = ["model.base=null", f"+model.checkpoint={out}", "source=zero_shot"] if is_model else [f"source={out}"]
    answer = shlex.join(["python", "scripts/predict.py", *words])
    print(f"\nload it as its README.md says; on the line's base, answer with it: {answer}")


def merge_rows(method: Method | OutsideMethod, record: Mapping[str, Any]) -> dict[str, str]:
    """What the record of a merge tells, as lines of a table."""
    names, ranks, norms = record["experts"], record["ranks"], list(record["expert_norms"].values())
    mean = sum(norms) / len(norms)
    own = getattr(method, "params", {}).get("strength", "as the method sets it")
    factor = own if record["strength"] is None else record["effective_strength"]
    factor = f"{factor:g}" if isinstance(factor, (int, float)) else str(factor)
    if getattr(method, "strength_key", None) == "factors":
        factor += f" (strength {record['strength']:g} on A and on B)"
    unused = find_unused(method)
    ratio = f"{record['norm'] / mean:.3g} x the experts' mean of {mean:.3g}" if mean else "and the experts' too"
    return {
        "experts": ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else ""),
        "modules": str(record["modules"]),
        "rank": "none: dense updates" if not ranks else "-".join(str(rank) for rank in {ranks[0]: 0, ranks[-1]: 0}),
        "effective factor": factor,
        "norm of the update": f"{record['norm']:.3g}, {ratio}",
        "rank rows dropped": str(record["dropped_rows"]),
        "modules_to_save": f"{record['extras']} tensors averaged" if record["extras"] else "none",
        **({"not used": ", ".join(unused)} if unused else {}),
    }


def shown(path: Path) -> str:
    """A path as short as it can be typed from the repository."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def _tell(title: str, addresses: Iterable[Address], root: Path) -> None:
    print(f"\n{title}, under {shown(root)}:")
    for address in addresses:
        record = read_manifest(address.manifest)["record"] if address.manifest.exists() else {}
        told = [f"{record['seconds']:.0f} s"] if "seconds" in record else []
        if "modules" in record:
            told.append(f"{record['modules']} modules")
        if record.get("effective_strength") is not None:
            told.append(f"update times {record['effective_strength']:g}")
        print(f"  {address.short}" + (f"  ({', '.join(told)})" if told else ""))


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{int(seconds // 60)} min {int(seconds % 60)} s"
