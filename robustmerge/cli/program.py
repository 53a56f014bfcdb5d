"""Merge LoRA adapters without training.

  robustmerge merge ties path/to/one path/to/two -o path/to/merged    merge two adapters by TIES
  robustmerge merge recipe.yaml                                       merge as a file says, also one of mergekit
  robustmerge methods                                                 what methods there are
  robustmerge inspect path/to/one path/to/two                         what to know before merging
  robustmerge extract path/to/base path/to/tuned -r 16 -o path/to/it  a LoRA out of a full fine-tuning
  robustmerge check path/to/base path/to/merged                       whether a merge took effect
  robustmerge convert path/to/llava-lora -o path/to/it                an adapter of LLaVA's own trainer to PEFT's format
  robustmerge push path/to/merged user/name                           upload a merge with its card

robustmerge COMMAND --help shows what a command takes, with an example.
"""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import NoReturn

from robustmerge.cli import check, convert, extract, inspect, merge, methods, push
from robustmerge.stage.failures import run_guarded
from robustmerge.stage.settings import UserError, choose

COMMANDS = {
    "merge": merge,
    "methods": methods,
    "inspect": inspect,
    "check": check,
    "extract": extract,
    "convert": convert,
    "push": push,
}


class Parser(ArgumentParser):
    """A parser of a command line whose mistakes are UserErrors, with the command that tells more."""

    def __init__(self, program: str, description: str | None):
        formatter = RawDescriptionHelpFormatter
        super().__init__(program, description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what can be typed")


def main(words: Sequence[str] | None = None) -> None:
    """Run one command. Ends the process with a status other than 0 where `run_guarded` says so."""
    typed = sys.argv[1:] if words is None else list(words)
    run_guarded(lambda: _run(typed), shlex.join(["robustmerge", *typed]))


def _run(words: Sequence[str]) -> None:
    if not words or words[0].startswith("-"):
        parser = Parser("robustmerge", __doc__)
        parser.add_argument("--version", action="version", version=f"robustmerge {_find_version()}")
        parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=", ".join(COMMANDS))
        parser.parse_args(words or ["--help"])
    command = COMMANDS[choose(words[0], COMMANDS, "command")]
    parser = Parser(f"robustmerge {words[0]}", command.__doc__)
    command.add_arguments(parser)
    command.run(parser.parse_intermixed_args(words[1:]))


def _find_version() -> str:
    try:
        return importlib.metadata.version("robustmerge")
    except importlib.metadata.PackageNotFoundError:
        return "of a checkout that is not installed"
