"""Show what to know about adapters before merging them, and what a merge left of them.

Whether they share their initial A, how their norms and spectra compare, how much they overlap, and what follows:

  robustmerge inspect path/to/one path/to/two
  robustmerge inspect one:path/to/a two:user/repo --merged path/to/merged
  robustmerge inspect path/to/one path/to/two --merged path/to/merged --out path/to/inspection

With --out the tables, a picture and figures 3, 7 and 8 of the paper are written, too; pictures need matplotlib.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from robustmerge.experts import fetch_experts
from robustmerge.stage.files import expand
from robustmerge.stage.settings import ConfigError, Problem, UserError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("experts", nargs="+", metavar="EXPERT", help="a folder, NAME:FOLDER, or user/repo[@revision]")
    parser.add_argument("--merged", nargs="+", default=[], metavar="FOLDER", help="adapters merged from these experts")
    parser.add_argument(
        "--density", type=float, default=0.2, help="fraction kept by the pruning whose effect is shown (0.2)"
    )
    parser.add_argument("-o", "--out", metavar="FOLDER", help="where tables and figures are written")
    parser.add_argument("--kind", help="modules shown layer by layer, as q_proj (the value projection)")
    parser.add_argument("--full", metavar="FOLDER", help="delta folder of a full fine-tuning, for its entries")


def run(options: Namespace) -> None:
    if not 0 < options.density <= 1:
        raise ConfigError(Problem(f"density must be in (0, 1], got {options.density}", "--density"))
    experts, merged = fetch_experts(options.experts), fetch_experts(options.merged)
    out = expand(options.out) if options.out else None
    for name, folder in [*experts.items(), *merged.items()]:
        if out is not None and folder.resolve() in (out.resolve(), *out.resolve().parents):
            raise UserError(f"{out} is in the folder of '{name}', which would change; choose one beside it (--out)")

    from robustmerge.analysis.inspection import inspect_folders
    from robustmerge.analysis.inspection_text import format_inspection

    full = expand(options.full) if options.full else None
    inspection = inspect_folders(experts, merged, options.density, options.kind, full)
    print(format_inspection(inspection))
    if out is not None:
        from robustmerge.analysis.inspection_files import write_inspection

        picture = write_inspection(inspection, out)
        print(f"\npicture: {picture} (beside it figures 3, 7 and 8, and the tables)")
