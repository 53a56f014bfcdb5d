"""The notebook of docs/ runs from its first cell to its last, and is stored without what it printed. Needs nothing."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt

from robustmerge.stage.address import REPOSITORY

CELLS = json.loads((REPOSITORY / "docs" / "merge.ipynb").read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_the_notebook_is_stored_without_outputs():
    assert [cell for cell in CODE if cell["outputs"] or cell["execution_count"] is not None] == []


def test_the_notebook_merges_inspects_and_plots(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    names: dict = {}
    for cell in CODE:
        exec(compile("".join(cell["source"]), "docs/merge.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert "- the experts began with different A" in printed
    assert "Direction robustness" in printed
    for method, factor in names["chosen"].items():
        assert (tmp_path / "merged" / f"{method}_{factor}" / "adapter_model.safetensors").is_file()
    assert all(0.8 < gain <= 1 for gain in names["bars"]["expert"])  # they are experts
    assert all(0 < gain < 0.8 for method in names["METHODS"] for gain in names["bars"][method])
    assert [axes.get_title() for axes in names["figure"].axes] == ["Experts", "Choosing the strength", "Test"]
    plt.close("all")
