"""Merge adapters into a new folder, which PeftModel.from_pretrained loads.

  robustmerge merge ties path/to/one path/to/two -o path/to/merged
  robustmerge merge ties one:path/to/a two:user/repo@v1 -o merged --set space=delta prune.density=0.1 --weights one=0.5
  robustmerge merge recipe.yaml -o path/to/merged
  robustmerge merge ties path/to/one path/to/two -o path/to/merged --for vllm

An expert is a folder, NAME:FOLDER, or user/repo[@revision] on the Hub. `robustmerge methods NAME` lists what --set
takes; a message that names merge.KEY means --set KEY. A recipe holds the same in a file; one of mergekit is understood
where it merges LoRA adapters by a method that is the same here. --for vllm or sglang writes what that server takes and
prints its command. No base model is needed, but for --format model, and for --for where a projector or a head was
trained in full. The same experts, method and seed give the same bytes, whatever the order of the experts and the number
of jobs. --device cuda merges on a GPU: the same numbers but for rounding.
"""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustmerge.experts import fetch_experts
from robustmerge.formats.serving import SERVERS
from robustmerge.mergekit import find_other_depths, read_mergekit
from robustmerge.method import AnyMethod, overlay, read_method
from robustmerge.method_parts import DTYPES, FORMATS
from robustmerge.recipe import Recipe, read_recipe
from robustmerge.stage.process import count_cores
from robustmerge.stage.settings import UserError
from robustmerge.stage.text import quote
from robustmerge.stage.yaml_files import parse_value, read_yaml


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="a name, the path of a method's .yaml file, or a recipe")
    parser.add_argument("experts", nargs="*", metavar="EXPERT", help="an adapter; a recipe names its own")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="the new folder")
    pairs: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--set", dest="settings", metavar="KEY=VALUE", help="settings of the method", **pairs)
    parser.add_argument("--weights", metavar="NAME=VALUE", help="factors of experts' updates", **pairs)
    parser.add_argument("--seed", type=int, help="of random pruning")
    parser.add_argument("--jobs", type=int, default=count_cores(), help="modules merged side by side (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where modules are merged: cpu, cuda, cuda:1 (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, help="what is written; by default an adapter where one is exact")
    parser.add_argument("--rank", help="cut the result to this rank: a number, or experts for the largest of theirs")
    parser.add_argument("--dtype", choices=DTYPES, help="of what is written (float32)")
    parser.add_argument("--for", dest="server", choices=SERVERS, help="an adapter that this server takes")
    parser.add_argument(
        "--base", help="of --format model and --for: a folder or user/repo; by default as the experts name it"
    )


def run(options: Namespace) -> None:
    recipe = _read(options)
    if not recipe.out:
        raise UserError("where to? give the new folder: -o FOLDER")
    method = _build_method(recipe, options)
    if options.jobs < 1:
        raise UserError(f"there must be at least 1 job, got {options.jobs} (--jobs)")
    experts = fetch_experts(recipe.experts)

    from robustmerge.device import require_device
    from robustmerge.formats.output import how_to_load
    from robustmerge.merging import merge_with_summary

    require_device(options.device)
    if recipe.plain_lora:
        _refuse_all_but_plain_lora(experts, recipe)
    for note in recipe.notes:
        print(f"note: {note}")
    merge_with_summary(recipe.out, method, experts, options.jobs, device=options.device)
    lines = how_to_load(method.output_format).replace("path/of/this/folder", recipe.out)
    print(f"\nload it:\n\n{textwrap.indent(lines, '    ')}", end="")


def _read(options: Namespace) -> Recipe:
    """The recipe that is named, or method and experts of the command line, without the settings that are typed."""
    if Path(options.method).suffix in (".yaml", ".yml"):
        content = read_yaml(Path(options.method), "a recipe or a method's file")
        is_mergekit = "merge_method" in content
        if not options.experts:
            recipe = (read_mergekit if is_mergekit else read_recipe)(content, options.method)
            return replace(recipe, out=options.out or recipe.out)
        if is_mergekit or "experts" in content:
            raise UserError(f"{options.method} is a recipe, which names its experts; leave out {options.experts[0]}")
    if options.experts:
        return Recipe(tuple(options.experts), options.method, out=options.out)
    raise UserError(
        f"which experts? robustmerge merge {options.method} EXPERT EXPERT -o FOLDER, or merge RECIPE.yaml, which names "
        "them"
    )


def _build_method(recipe: Recipe, options: Namespace) -> AnyMethod:
    """The recipe's method with the settings that are typed."""
    settings = recipe.settings
    for key, value in _split_pairs(options.settings, "--set"):
        key = key.removeprefix("merge.")
        if key == "name":
            raise UserError(f"the method is the first word, as in robustmerge merge {value} EXPERT EXPERT (--set name)")
        changes = parse_value(value)
        for part in reversed(key.split(".")):
            changes = {part: changes}
        settings = overlay(settings, changes)
    if options.weights:
        weights = {name: parse_value(text) for name, text in _split_pairs(options.weights, "--weights")}
        settings = overlay(settings, {"weights": weights})
    if options.seed is not None:
        settings = overlay(settings, {"seed": options.seed})
    rank = None if options.rank is None else parse_value(options.rank)
    out = {"format": options.format, "rank": rank, "dtype": options.dtype, "base": options.base, "for": options.server}
    if not isinstance(settings.get("out", {}), Mapping | None):
        raise UserError(f"out holds settings of its own, as out.format, got {quote(str(settings['out']))} (merge.out)")
    settings = overlay(settings, {"out": {key: value for key, value in out.items() if value is not None}})
    needs_base = settings["out"].get("format") == "model" or settings["out"].get("for") is not None
    if needs_base and recipe.base is not None:
        settings = overlay({"out": {"base": recipe.base}}, settings)
    return read_method(recipe.method, **settings)


def _split_pairs(pairs: Iterable[str], option: str) -> Iterable[tuple[str, str]]:
    """KEY and VALUE of each; the names of experts may hold `=`, their weights do not."""
    seen: set[str] = set()
    for pair in pairs:
        key, equals, value = pair.rpartition("=") if option == "--weights" else pair.partition("=")
        if not equals or not key:
            raise UserError(
                f"{option} takes pairs, as {option} {'one=0.5' if option == '--weights' else 'strength=0.7'}, got "
                f"{quote(pair)}; METHOD and the experts come before it"
            )
        if key in seen:
            raise UserError(f"{option} has {quote(key)} twice; give it once")
        seen.add(key)
        yield key, value


def _refuse_all_but_plain_lora(experts: Mapping[str, Path], recipe: Recipe) -> None:
    """Raises UserError for adapters that mergekit, which adds them to the base first, would merge otherwise."""
    from robustmerge.formats.adapter import open_adapters
    from robustmerge.formats.compatibility import list_modules

    adapters, _ = open_adapters(experts)  # what cannot be opened is told by the merge
    problems = find_other_depths(recipe, list_modules(adapters))
    for adapter in adapters:
        kinds = {"DoRA": adapter.is_dora, "modules_to_save": bool(adapter.extras), "lora_bias": adapter.has_lora_bias}
        if found := ", ".join(kind for kind, is_there in kinds.items() if is_there):
            problems.append(
                f"expert '{adapter.name}' has {found}, which mergekit would merge to another result; merge it without "
                "its recipe: robustmerge merge METHOD EXPERT EXPERT"
            )
    if problems:
        raise UserError("\n".join(problems))
