"""Upload an adapter folder, or what `source=` names, to a repository of the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.addresses import require_complete
from pipeline.plan import Plan, make_command
from pipeline.sweep import make_plan_with
from robustmerge.push.upload import Upload, upload_folder
from robustmerge.stage.files import expand
from robustmerge.stage.settings import UserError


@dataclass(frozen=True)
class PushRequest(Upload):
    """The keys of push.py."""

    folder: str | None = None


def push(point: Mapping[str, Any]) -> None:
    """Show, ask, upload. Raises UserError, before any upload, for what cannot or should not be uploaded."""
    plan, request = make_plan_with(PushRequest, point)
    uploaded = upload_folder(find_folder(plan, request), request, lambda key, value: f"{key}={value}")
    if uploaded is not None:
        print(f"merge it elsewhere as 'experts=[{uploaded}]'")


def find_folder(plan: Plan, request: PushRequest) -> Path:
    """The folder that `source` or `folder` names. Raises UserError unless it is one, or if a result is not there."""
    name = plan.config.source
    if (name is None) == (request.folder is None):
        raise UserError("give one of source=NAME (as merged/robustmerge) and folder=FOLDER")
    if request.folder is not None:
        return expand(request.folder).resolve()
    source = plan.find_source(name)
    if source.kind == "zero_shot":
        raise UserError("zero_shot is the base alone; source= names an adapter: an expert, a merge, a folder")
    require_complete([source.address], "result is", partial(make_command, source))
    return source.address.path
