"""List the merge methods, or all settings of one.

  robustmerge methods
  robustmerge methods ties

What the second one prints is what `robustmerge merge ties ... --set KEY=VALUE` changes. Sources: each method's authors.
"""

from __future__ import annotations

import shutil
import textwrap
from argparse import ArgumentParser, Namespace

from robustmerge.graded import format_grade
from robustmerge.method import list_methods
from robustmerge.method_page import MethodPage, read_method_page

LETTERS = (
    "In the formulas D_n = B_n A_n is the update of expert n, with alpha/r in B_n; X_n is A_n and B_n each, or with "
    "--set space=delta D_n; a tilde stands over what pruning keeps; λ is the strength."
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="a method, or the path of a method's .yaml file")


def run(options: Namespace) -> None:
    if options.name is None:
        print("\n\n".join(_summarize(name, read_method_page(name)) for name in list_methods()))
        print(f"\n{_fill(LETTERS, '')}\n\nrobustmerge methods NAME shows all settings of one")
    else:
        _print_page(read_method_page(options.name))


def _summarize(name: str, page: MethodPage) -> str:
    changed = ", ".join(f"{key}={_format(value)}" for key, value in page.changed.items())
    lines = [
        f"{name}: {page.method.title or name}, {page.method.paper}".rstrip(", "),
        page.summary,
        page.formula,
        f"defaults: {changed}",
    ]
    return "\n".join([lines[0], *(_fill(line, "    ") for line in lines[1:] if line)])


def _print_page(page: MethodPage) -> None:
    method = page.method
    print(f"{method.title or method.name}, {method.paper}".rstrip(", "))
    print("\n".join(_fill(text, "") for text in (page.description, page.formula) if text) + "\n")
    width = max(map(len, page.settings))
    for key, value in page.settings.items():
        print(f"  {key:<{width}}  {_format(value)}")
        if comment := page.comments.get(key):
            print(_fill(comment, " " * (width + 6)))


def _format(value: object) -> str:
    """A value as --set takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_format(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return format_grade(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _fill(text: str, indent: str) -> str:
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
