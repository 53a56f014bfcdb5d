"""Prove that a merge took effect: load the base with each adapter, and say what moves.

  robustmerge check path/to/base path/to/merged
  robustmerge check path/to/base path/to/one path/to/two path/to/merged

BASE reads a few fixed sequences of random tokens, without pictures, alone and with each adapter. Of several adapters
the last is the merged one, with which the others are compared. The exit status is 1 if one of them moves nothing, or
has an update for a module that BASE lacks. This needs transformers and peft: pip install '.[check]' in a checkout.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace

from robustmerge.experts import fetch_experts
from robustmerge.hub.places import fetch_model


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="the base model: a folder, or user/repo[@revision]")
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="a folder, or user/repo[@revision]")
    parser.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1 (%(default)s)")


def run(options: Namespace) -> None:
    folders = fetch_experts({text: text for text in options.adapters})

    from robustmerge.analysis.effect import describe_cosines, describe_effect, measure_effects
    from robustmerge.device import require_device

    require_device(options.device)
    effects = []
    for name, effect in measure_effects(fetch_model(options.base, "BASE"), folders, options.device):
        print("\n".join(describe_effect(name, options.base, effect)), flush=True)
        effects.append((name, effect))
    for line in describe_cosines(effects):
        print(line)
    if not all(effect.is_whole for _, effect in effects):
        sys.exit(1)
