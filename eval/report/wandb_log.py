"""Logging the tables of a report to Weights & Biases. The only module that imports wandb; a failure is a warning."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eval.report.results import Context
from eval.report.tables import Table
from eval.settings import Logger


def log_report(
    settings: Logger,
    folder: Path,
    tables: Mapping[str, Table],
    context: Context,
    say: Callable[[str], None] = print,
) -> str | None:
    """Log every table and, as the summary, the averages; return the mode, or None if that failed.

    Files of an offline run lie under `folder`/wandb; the message names the command that sends them.
    """
    try:
        return _log(settings, Path(folder), tables, context, say)
    except Exception as error:  # the report exists already: nothing that fails here may spoil the run
        say(f"warning: the report was not logged to W&B: {type(error).__name__}: {error}")
        return None


def _log(
    settings: Logger, folder: Path, tables: Mapping[str, Table], context: Context, say: Callable[[str], None]
) -> str:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    mode: Any = settings.mode  # wandb checks what WANDB_MODE holds
    if mode == "auto":  # the user's own WANDB_MODE first; no key, no network
        key = wandb.login(prompt=False, verify=False)
        mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
    with wandb.init(
        project=settings.project,
        entity=settings.entity,
        name=context.name,
        dir=str(folder),
        mode=mode,
        config=_make_config(context),
        settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, init_timeout=30),
    ) as run:
        for name, table in tables.items():
            run.log({name: wandb.Table(columns=_list_titles(table), data=_list_values(table))})
        run.summary.update(summarise(tables["main"]))
        address = run.url if mode == "online" else run.settings.sync_dir
    hint = "" if mode == "online" else f" (offline; send it with: wandb sync {address})"
    say(f"W&B: {address}{hint}")
    return mode


def _make_config(context: Context) -> dict[str, Any]:
    return {
        "benchmark": context.benchmark,
        "model": context.model,
        "profile": context.profile,
        "commit": context.commit,
        "seeds": dict(context.seeds),
        "tasks": [task.name for task in context.tasks],
        "command": context.command,
    }


def _list_titles(table: Table) -> list[str]:
    return [table.head, *(column.title for column in table.columns)]


def _list_values(table: Table) -> list[list[Any]]:
    """The rows, with numbers where there are any, so that W&B can sort and plot."""
    return [
        [
            row.title,
            *(c.text if column.is_text else c.value for c, column in zip(row.cells, table.columns, strict=True)),
        ]
        for row in table.rows
    ]


def summarise(main: Table) -> dict[str, float]:
    """Collect the averages for W&B's summary, with keys like `seen_avg/RobustMerge`."""
    return {
        f"{column.key}/{row.title}": cell.value
        for row in main.rows
        for column, cell in zip(main.columns, row.cells, strict=True)
        if column.is_average and cell.value is not None
    }
