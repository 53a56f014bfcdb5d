"""What the findings say of the pretrained language model is what its committed tables hold. Needs nothing."""

from __future__ import annotations

from statistics import mean

from tests.test_numbers import BEST, CHOSEN, METHODS, column, find_row, read_csv, read_page, read_table, with_noise

MODELS = ("tiny", "small", "smollm2")
PRETRAINED = "independent A, model=smollm2"


def score(title: str, model: str, key: str = "seen_avg") -> float:
    return float(find_row("pretrained/main", title, f"model = {model}")[key])


def interval(table: str, title: str, model: str, average: str = "seen_avg") -> tuple[float, float]:
    """The ends of a difference's 95 % interval over questions."""
    row = find_row(f"pretrained/{table}", title, f"model = {model}")
    return float(row[f"{average}_low"]), float(row[f"{average}_high"])


def test_the_table_is_that_of_the_experiment():
    rows = read_table("docs/findings.md", "| seen average, strength chosen | `tiny`")
    assert len(rows) == 3 + len(METHODS)
    for title, cells in rows.items():
        assert cells == [with_noise(find_row("pretrained/swept", title), f"seen_avg_{model}") for model in MODELS]


def test_the_order_in_groups_is_that_of_all_three_models():
    for model in MODELS:
        behind_best = [interval("differences", title + CHOSEN, model) for title in METHODS]
        assert all(high < 0 for _, high in behind_best), "tsv_m_lines is clearly first"
        for title in ("Task Arithmetic", "DARE"):
            assert all(interval("standing", title + variant, model)[1] < 0 for variant in ("", CHOSEN))
        assert interval("standing", "TIES", model)[0] > 0


def test_a_sentence_says_what_was_measured():
    chosen = {model: [score(title + CHOSEN, model) for title in (BEST, *METHODS)] for model in MODELS}
    apart = [max(chosen[model]) - min(chosen[model]) for model in ("smollm2", "tiny", "small")]
    behind = [
        score(f"Task Arithmetic{CHOSEN}", m) - score(f"RobustMerge{CHOSEN}", m) for m in ("smollm2", "tiny", "small")
    ]
    unseen = {m: [score(title + CHOSEN, m, "unseen_avg") for title in (BEST, *METHODS)] for m in MODELS}
    merged = [score(title + at, "smollm2", "flickr30k") for title in (BEST, *METHODS) for at in ("", CHOSEN)]
    zero_shot = score("Zero-shot", "smollm2", "flickr30k")
    pruning = read_csv("pretrained/figure3_pruning")
    ratio = {(row["stage"], row["k"]): float(row["ratio"]) for row in pruning}
    second = [mean(column("pretrained/findings/spectra", "relative", group=g, k="2")) for g in groups()]
    fourth = mean(column("pretrained/findings/spectra", "relative", group=PRETRAINED, k="4"))
    (rho,) = column("pretrained/findings/relations", "rho", group=PRETRAINED, scope="methods", quantity="share_lowest")
    cross = [column("pretrained/findings/cross", "weight", group=g, kind="plain")[0] for g in groups()]
    text = read_page("docs/findings.md")
    sentences = [
        "From first to last it is {:.1f} points, where the small bases have {:.1f} and {:.1f}".format(*apart),
        "RobustMerge is {:.1f} points below Task Arithmetic, where they have {:.1f} and {:.1f}".format(*behind),
        f"all methods are level, at {min(unseen['smollm2']):.1f} to {max(unseen['smollm2']):.1f}",
        f"on `small` they lie between {min(unseen['small']):.1f} and {max(unseen['small']):.1f}",
        f"Flickr30k falls from the base's {zero_shot:.1f} to between {min(merged):.1f} and {max(merged):.1f}",
        f"the first direction keeps {ratio['pruned', '1']:.2f} of its length and the fourth {ratio['pruned', '4']:.2f}",
        f"they are {ratio['scaled', '1']:.2f} and {ratio['scaled', '4']:.2f} times as long",
        f"the second is {min(second):.2f} to {max(second):.2f} of the first",
        f"the fourth of `smollm2` {fourth:.2f}",
        f"rank correlation {rho:.2f},",
        f"cross terms are {min(cross):.1f} to {max(cross):.1f} times as long",
        f"{-behind_first_unseen():.1f} points below the first on the unseen ones",
    ]
    assert [sentence for sentence in sentences if sentence not in text] == []
    rows = [row for row in read_csv("pretrained/main") if "smollm2" in row["source"]]
    assert len(rows) == 2 + len(merged), "zero-shot, individual, and the merged models"


def groups() -> list[str]:
    return [f"independent A, model={model}" for model in MODELS]


def behind_first_unseen() -> float:
    """How far tsv_m_lines is behind the first on the unseen tasks, all at their defaults."""
    return float(find_row("pretrained/differences", BEST, "model = smollm2")["unseen_avg"])


def test_what_else_is_said_of_it_holds():
    low, high = interval("differences", BEST, "smollm2")
    assert low < 0 < high, "at its default level with Task Arithmetic, the first"
    assert find_row("pretrained/differences", "Task Arithmetic", "model = smollm2")["seen_avg"] == ""
    for title in ("Task Arithmetic", "DARE"):
        assert score(title + CHOSEN, "smollm2") <= score(title, "smollm2")
    for title in (BEST, *METHODS):
        if title != "TIES":  # the first
            low, high = interval("differences", title + CHOSEN, "smollm2", "unseen_avg")
            assert low < 0 < high
    cosines = [mean(column("pretrained/findings/pairs", "update_cosine", group=group)) for group in groups()]
    assert max(map(abs, cosines)) < 0.0015
    apart = [title for title in METHODS if title != "KnOTS-TIES"]
    outside = [x for m in apart for x in column("pretrained/findings/merged", "outside", group=PRETRAINED, method=m)]
    assert (round(min(outside), 2), round(max(outside), 2)) == (0.93, 0.99)
