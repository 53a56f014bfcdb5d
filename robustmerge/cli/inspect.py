"""Show what to know about adapters before merging them, and what a merge left of them.

Whether they share their initial A, how their norms and spectra compare, how much they overlap, and what follows:

  robustmerge inspect path/to/one path/to/two
  robustmerge inspect one:path/to/a two:user/repo --merged path/to/merged
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from robustmerge.experts import fetch_experts
from robustmerge.stage.settings import ConfigError, Problem


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("experts", nargs="+", metavar="EXPERT", help="a folder, NAME:FOLDER, or user/repo[@revision]")
    parser.add_argument("--merged", nargs="+", default=[], metavar="FOLDER", help="adapters merged from these experts")
    parser.add_argument(
        "--density", type=float, default=0.2, help="fraction kept by the pruning whose effect is shown (0.2)"
    )


def run(options: Namespace) -> None:
    if not 0 < options.density <= 1:
        raise ConfigError(Problem(f"density must be in (0, 1], got {options.density}", "--density"))
    experts, merged = fetch_experts(options.experts), fetch_experts(options.merged)

    from robustmerge.analysis.inspection import inspect_folders
    from robustmerge.analysis.inspection_text import format_inspection

    print(format_inspection(inspect_folders(experts, merged, options.density)))
