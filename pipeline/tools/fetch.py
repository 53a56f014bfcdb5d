"""What has to be downloaded for the tasks of a plan: licence, address, size; what the Hub has is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.origin import Download, Origin
from data_prep.published_layout import QUESTION_FILES
from data_prep.settings import load_release
from pipeline.plan import Plan
from pipeline.terminal import format_path
from robustmerge.hub.pins import DATASET, hub_error
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import expand
from robustmerge.stage.settings import ConfigError, Problem, UserError
from robustmerge.stage.text import quote


def wants_fetch(point: dict[str, Any]) -> bool:
    """Take the key `fetch` out of a composed config. Raises ConfigError if it is neither true nor false."""
    wanted = point.pop("fetch")
    if not isinstance(wanted, bool):
        raise ConfigError(Problem(f"expected true or false, got {quote(wanted)}", "fetch"))
    return wanted


def fetch(plan: Plan) -> None:
    """Print where the chosen tasks' data can be had and under which licence; then fetch what the Hub has.

    Raises UserError if a task is not read from question files or a release, or the Hub does not give a repository.
    """
    folder, origins = REPOSITORY / expand(plan.config.raw), list(_find_origins(plan))  # where the tasks look
    for origin in origins:
        print(f"{origin.title}: {origin.licence}")
        for one in origin.downloads:
            print(f"  {one.files}  ({one.size})\n    {one.address}")
    print(f"\neverything belongs below {format_path(folder)}; where exactly, and what was not verified: docs/data.md")
    for one in dict.fromkeys(one for origin in origins for one in origin.downloads):
        if one.hub:
            _fetch(one, folder)


def _find_origins(plan: Plan) -> Iterator[Origin]:
    """The origin of every task, that of the authors' question files first."""
    settings = [plan.config.data(task) for task in plan.config.tasks]
    if any(one.source == "questions" and one.collection is not None for one in settings):
        yield QUESTION_FILES
    releases = [one.release.name for one in settings if one.release is not None]
    if not releases:
        raise UserError("fetch=true is for tasks of published datasets, as benchmark=mm_mergebench has them")
    yield from (load_release(name).ORIGIN for name in releases)


def _fetch(one: Download, folder: Path) -> None:
    """Fetch a repository's files into the raw folder; those that are there already are kept."""
    from huggingface_hub import snapshot_download

    print(f"fetching {one.hub} into {format_path(folder)}")
    try:
        patterns = list(one.patterns) or None
        snapshot_download(one.hub, repo_type=DATASET, local_dir=folder / one.place, allow_patterns=patterns)
    except Exception as error:  # what the network raises differs between versions of the Hub's library
        raise hub_error(one.hub, error, one.hub, "main") from error
