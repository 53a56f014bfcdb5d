"""The site of mkdocs.yml builds, and every link and picture of it is there. Needs mkdocs (requirements.lock has it)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from robustmerge.stage.address import REPOSITORY
from tests.pages import PAGES


class Page(HTMLParser):
    """What a page of the site links to, the anchors that it has, and its text."""

    def __init__(self, file: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [link for key in ("href", "src") if (link := values.get(key))]
        self.anchors |= {anchor for key in ("id", "name") if (anchor := values.get(key))}

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Page]:
    """The pages of the built site, by their files."""
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs and mkdocstrings are not installed: pip install -r requirements.lock")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return {file: Page(file) for file in folder.rglob("*.html") if file.name != "404.html"}


def find_page(site: dict[Path, Page], name: str) -> Page:
    return next(page for file, page in site.items() if file.as_posix().endswith(f"/{name}"))


def test_every_page_of_the_documentation_is_on_the_site(site: dict[Path, Page]) -> None:
    for page in PAGES:
        name = page.relative_to(REPOSITORY).with_suffix(".html").as_posix().replace("README", "index")
        assert page.read_text().partition("\n")[0].removeprefix("# ").replace("`", "") in find_page(site, name).text


def test_every_link_and_picture_of_the_site_is_there(site: dict[Path, Page]) -> None:
    for file, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.is_file(), (file.name, link)
            if parts.fragment and target in site:
                assert unquote(parts.fragment) in site[target].anchors, (file.name, link)


def test_what_is_no_page_in_the_repository_is_shown_by_one(site: dict[Path, Page]) -> None:
    assert "PeftModel.from_pretrained(make_base(), folder)" in find_page(site, "docs/merge.ipynb.html").text
    assert "strengths: {factors: 1.0" in find_page(site, "configs/merge/ties.yaml.html").text


def test_the_api_has_the_docstrings(site: dict[Path, Page]) -> None:
    page = find_page(site, "docs/api.html")
    assert "robustmerge.merging.merge_folders" in page.anchors
    assert "Merge adapter folders or hub ids into the new folder" in page.text
