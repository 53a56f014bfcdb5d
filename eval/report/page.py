"""The HTML page of a report, made from its Markdown and complete in one file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path

import markdown

from eval.report.formats import escape_html
from eval.report.results import Context

IMAGE = re.compile(r'(<img [^<>]*src=)"([^"<>]+)"')
MIME = {".png": "image/png", ".svg": "image/svg+xml"}


def make_page(text: str, context: Context, files: Mapping[str, bytes]) -> str:
    """The page with its style inside and its pictures embedded. files: pictures by their path in the text."""
    body = markdown.markdown(text, extensions=["tables", "fenced_code", "sane_lists"], output_format="html")
    body = IMAGE.sub(lambda match: f'{match[1]}"{_embed(match[2], files)}"' if match[2] in files else match[0], body)
    for mark, name in (("✓", "right"), ("✗", "wrong")):
        body = body.replace(f" {mark}</td>", f' <span class="{name}">{mark}</span></td>')
    title = escape_html(f"{context.benchmark} on {context.model}")
    smoke = ' class="smoke"' if context.profile == "smoke" else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{CSS}</style></head>\n'
        f"<body{smoke}><main>\n{body}\n</main></body></html>\n"
    )


def _embed(name: str, files: Mapping[str, bytes]) -> str:
    data = base64.b64encode(files[name]).decode()
    return f"data:{MIME[Path(name).suffix]};base64,{data}"


CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --tint: #f6f8fa;
        --bar: #dbe9fb; --accent: #0072b2; --strong: #8c959f; --right: #1a7f37; --wrong: #b42318; --notice: #fff4e5;
        --warn: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0f1419; --ink: #e6e9ed; --soft: #9aa4b0; --line: #2b333c; --tint: #1a2129; --bar: #173a5e;
          --accent: #6cb6ff; --strong: #56606b; --right: #57c274; --wrong: #ff8a80; --notice: #33230d;
          --warn: #e0902f; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--page);
       font: 16px/1.55 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1340px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 16px; }
h2 { font-size: 21px; margin: 48px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 16px; margin: 28px 0 8px; }
p, li { max-width: 860px; }
a { color: var(--accent); }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--tint);
       padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
      overflow-x: auto; }
pre code { padding: 0; background: none; }
blockquote { margin: 16px 0; padding: 14px 18px; border-left: 6px solid var(--warn); background: var(--notice);
             border-radius: 6px; }
blockquote p { margin: 0; font-size: 18px; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
p.caption { max-width: 1000px; margin: -6px 0 28px; color: var(--soft); font-size: 14px; }
p:has(> img) { max-width: none; display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
p > img { flex: 1 1 520px; min-width: 0; max-width: 720px; }
p > img.wide { flex: 1 1 100%; max-width: 1290px; }
details { margin: 16px 0; }
summary { cursor: pointer; color: var(--soft); }
details pre { font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.wide { overflow-x: auto; margin: 16px 0; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
table.scores { width: 100%; font-size: 13px; }
.scores td, .scores thead th { text-align: right; white-space: nowrap; padding: 6px 7px; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
.scores thead th { color: var(--soft); font-weight: 600; font-size: 12px; vertical-align: bottom; }
.scores thead tr:last-child th { border-bottom: 2px solid var(--ink); }
.scores th:first-child { text-align: left; position: sticky; left: 0; background: var(--page);
                         white-space: normal; min-width: 140px; overflow-wrap: anywhere; font-weight: 600; }
.scores tr.block th { background: var(--tint); color: var(--ink); text-align: left; font-size: 12px;
                      padding: 8px 7px 5px; border-top: 1px solid var(--strong); }
.scores tr.block span { position: sticky; left: 7px; }
table.differences, table.standing, table.pairs, table.parts, table.other_parts { width: auto; }
.wide:has(> .differences, > .standing, > .pairs, > .parts, > .other_parts) { width: fit-content; max-width: 100%; }
.scores .groups th { text-align: center; border-bottom: 0; padding-bottom: 0; text-transform: uppercase;
                     letter-spacing: .06em; font-size: 11px; }
.scores td { background: linear-gradient(90deg, var(--bar) var(--v, 0%), transparent 0); }
.scores td.average { border-left: 1px solid var(--line); border-right: 1px solid var(--line); font-size: 14px; }
.scores thead th.average { color: var(--ink); }
.scores .words { text-align: left; }
.scores small { color: var(--soft); font-size: 11px; display: block; }
.scores tr.last > * { border-bottom: 2px solid var(--strong); }
.scores tbody tr:last-child > * { border-bottom: 0; }
.scores.published { color: var(--soft); }
.scores.published td { background: none; }
main > table { border: 1px solid var(--line); border-radius: 8px; border-spacing: 0; }
main > table + table { margin-top: 10px; }
main > table thead th { background: var(--tint); text-align: left; }
main > table td img { display: block; image-rendering: pixelated; border-radius: 6px; border: 1px solid var(--line); }
h3 + table { table-layout: fixed; width: 100%; }
h3 + table td { overflow-wrap: anywhere; }
h3 + table th:first-child, h3 + table td:first-child { width: 190px; color: var(--soft); }
@media (max-width: 800px) {
  main { padding: 20px 14px 48px; }
  main > table { display: block; overflow-x: auto; }
  p:has(> img.wide) { display: block; overflow-x: auto; }
  p > img.wide { max-width: none; width: 860px; }
  h3 + table td, h3 + table th { min-width: 180px; }
  h3 + table th:first-child, h3 + table td:first-child { min-width: 128px; width: 128px; position: sticky; left: 0; }
  h3 + table td:first-child { background: var(--page); }
}
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; } }
"""
