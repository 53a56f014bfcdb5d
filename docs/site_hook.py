"""The hook of mkdocs.yml: lays out the site as the repository, so that links are right in both.

README.md is the front page. Beside it, CONTRIBUTING.md and docs/ stands whatever they link to, and what that links to:
other pages and pictures as they are, code and the notebook as pages that show them. Folders have no page, and links to
them become plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from os.path import relpath
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files, InclusionLevel
from pygments.formatters import HtmlFormatter

REPOSITORY = Path(__file__).parent.parent
LINK = re.compile(r"\[(?P<text>[^][]*)\]\((?P<target>[^)\s#:]+)(?P<section>#[^)\s]*)?\)")
IMAGE = re.compile(r'<img [^>]*src="([^":]+)"')
AS_THEY_ARE = (".md", ".svg", ".png", ".xz")  # all other files are shown by a page


def on_files(files: Files, config: Any) -> Files:
    """Replace the files of docs/ by the pages at their places in the repository, and what they link to."""
    first = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    found = dict.fromkeys(first)
    for page in (todo := list(found)):
        for target in find_targets(page) if page.suffix == ".md" else ():
            if target.is_file() and target not in found:
                found[target] = None
                todo.append(target)
    laid_out = Files(file for file in files if file.src_dir != config.docs_dir)  # what the theme brings
    for path in found:
        name = path.relative_to(REPOSITORY).as_posix()
        if path.suffix in AS_THEY_ARE:
            file = File.generated(config, name, abs_src_path=str(path))
        else:
            file = File.generated(config, f"{name}.md", content=show_file(path))
        if path not in first:
            file.inclusion = InclusionLevel.NOT_IN_NAV
        laid_out.append(file)
    style = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    style += (REPOSITORY / "docs" / "site.css").read_text()
    laid_out.append(File.generated(config, "docs/site.css", content=style))
    return laid_out


def find_targets(page: Path) -> Iterator[Path]:
    """The files and folders of the repository that a page links to or shows."""
    text = page.read_text()
    for target in [match["target"] for match in LINK.finditer(text)] + IMAGE.findall(text):
        path = (page.parent / target).resolve()
        if path.is_relative_to(REPOSITORY) and path.exists():
            yield path


def show_file(path: Path) -> str:
    """A page that shows code, or the cells of a notebook."""
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        texts = [("".join(cell["source"]), cell["cell_type"] == "code") for cell in cells]
        return "\n\n".join(f"```python\n{text}\n```" if is_code else text for text, is_code in texts)
    return f"# {path.relative_to(REPOSITORY)}\n\n``````{path.suffix[1:]}\n{path.read_text()}\n``````\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links to code lead to the page that shows it, and take those to folders out."""
    folder = (REPOSITORY / page.file.src_uri).parent

    def follow(match: re.Match[str]) -> str:
        path = (folder / match["target"]).resolve()
        if path.is_dir():
            return match["text"]
        if path.is_file() and path.suffix not in AS_THEY_ARE:
            return f"[{match['text']}]({relpath(path, folder)}.md)"
        return match[0]

    return LINK.sub(follow, markdown)


class Examples(griffe.Extension):
    """Extends the reading of docstrings: examples are blocks of code, not quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^>>> .+(?:\n.+)*", r"```pycon\n\g<0>\n```", obj.docstring.value, flags=re.M)
