"""Captions: the published figures to the digit, METEOR from sums, what is left without Java, one process for all.

The tests that need Java are left out where there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import aggregates, caption_tokens, captions, meteor
from eval.metrics.captions import CAPTION_FIGURES, CAPTION_METRICS
from eval.settings import CAPTION_NAMES
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.settings import UserError

GOLDEN = json.loads((REPOSITORY / "tests" / "golden" / "captions" / "captions.json").read_text(encoding="utf-8"))
TEXTS = [question["caption"] for question in GOLDEN["questions"]]
REFERENCES = [question["references"] for question in GOLDEN["questions"]]
SEPARATORS = ("\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\t", " \n ")
WITHOUT_METEOR = [name for name in CAPTION_FIGURES if name != "meteor"]

needs_java = pytest.mark.skipif(not caption_tokens.has_java(), reason="there is no Java here")
words = st.lists(st.sampled_from(("a", "dog", "on", "the", "grass", "runs")), max_size=7).map(" ".join)
corpora = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=2, max_size=6)
corpora = corpora.filter(lambda corpus: any(any(references) for _, references in corpus))


@pytest.fixture(scope="module")
def published():
    """The golden captions under the published rule. The one test process of METEOR starts here."""
    yield CAPTION_METRICS["mean_of_seven"](TEXTS, REFERENCES, "ptb")
    meteor.stop()


@pytest.fixture
def no_java(monkeypatch):
    caption_tokens.has_java.cache_clear()
    monkeypatch.setenv("PATH", "")
    yield
    caption_tokens.has_java.cache_clear()


def sum_statistics(corpus: captions.CaptionScore, rows=slice(None)) -> np.ndarray:
    statistics = np.array(corpus.statistics)[rows]
    return np.concatenate(([len(statistics)], statistics.sum(0)))


def test_a_caption_metric_can_be_chosen_and_summed():
    assert tuple(sorted(CAPTION_METRICS)) == CAPTION_NAMES
    assert set(CAPTION_METRICS) <= set(aggregates.AGGREGATES)


@needs_java
def test_the_seven_figures_are_the_published_ones(published):
    expected = dict(GOLDEN["expected"])
    assert published.value == pytest.approx(expected.pop("mean_of_seven"), abs=1e-9)
    assert published.parts == pytest.approx(expected, abs=1e-9)
    assert list(published.parts) == list(CAPTION_FIGURES)
    assert caption_tokens.tokenize(TEXTS, "ptb") == GOLDEN["tokens"]


@needs_java
def test_cider_is_the_same_figure_beside_the_six_and_in_the_seven(published):
    corpus = CAPTION_METRICS["cider"](TEXTS, REFERENCES, "ptb")
    assert corpus.metric == "cider"
    assert corpus.value == pytest.approx(published.parts["cider"])
    assert corpus.parts == {name: published.parts[name] for name in WITHOUT_METEOR if name != "cider"}


@needs_java
def test_meteor_from_sums_is_what_its_jar_says_of_any_captions(published):
    matches = np.array(published.statistics)[:, aggregates.BLEU_COLUMNS :][:, : aggregates.METEOR_COLUMNS]
    assert 100 * aggregates.meteor(matches) == pytest.approx(GOLDEN["meteor"], abs=1e-9)
    for seed in range(20):
        rows = matches[np.random.default_rng(seed).integers(len(matches), size=1 + seed)]
        line = " ||| ".join(["EVAL", *(" ".join(map(str, row)) for row in rows)])
        *_, jar = meteor.ask(line, len(rows) + 1)
        assert aggregates.meteor(rows.sum(0)) == pytest.approx(float(jar), abs=1e-12)


@needs_java
def test_a_score_follows_from_its_statistics(published):
    value = aggregates.AGGREGATES[published.aggregate](sum_statistics(published))
    assert 100 * value == pytest.approx(published.value, abs=1e-9)
    assert 100 * aggregates.caption_figures(sum_statistics(published)) == pytest.approx(
        list(published.parts.values()), abs=1e-9
    )


@needs_java
def test_many_sums_at_once_are_each_of_them(published):
    draws = np.stack(
        [sum_statistics(published, np.random.default_rng(seed).integers(20, size=20)) for seed in range(6)]
    )
    together = aggregates.mean_of_seven(draws.reshape(2, 3, -1))
    assert together.shape == (2, 3)
    assert together.ravel() == pytest.approx([aggregates.mean_of_seven(row) for row in draws])


@needs_java
def test_every_task_uses_one_process_and_a_known_caption_not_even_that(published, monkeypatch):
    process = meteor._process
    CAPTION_METRICS["mean_of_seven"](TEXTS[:3], REFERENCES[:3], "ptb")
    assert meteor._process is process
    monkeypatch.setattr(meteor, "ask", lambda *_: pytest.fail("asked again"))
    again = CAPTION_METRICS["mean_of_seven"](TEXTS, REFERENCES, "ptb")
    assert again == published


@needs_java
def test_no_line_separator_moves_a_caption_to_another_question():
    broken = [f"a dog{separator}runs" for separator in SEPARATORS]
    assert caption_tokens.tokenize([*broken, "the end"], "ptb") == ["a dog runs"] * len(broken) + ["the end"]
    assert caption_tokens.tokenize(["\n", "", "a\u2028", "\x85"], "ptb") == ["", "", "a", ""]


@needs_java
def test_the_builtin_tokenizer_agrees_with_the_published_one_on_nearly_every_caption():
    lines = TEXTS + [reference for several in REFERENCES for reference in several]
    pairs = list(zip(*(caption_tokens.tokenize(lines, name) for name in ("ptb", "builtin")), strict=True))
    assert sum(one == other for one, other in pairs) >= 0.95 * len(pairs)


def test_a_tokenizer_that_loses_a_line_is_refused(monkeypatch):
    done = subprocess.CompletedProcess([], 0, b"one line only", b"")
    monkeypatch.setattr(caption_tokens, "has_java", lambda: True)
    monkeypatch.setattr(caption_tokens.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UserError, match="made 1 lines of 2 captions"):
        caption_tokens.tokenize(["lost and", "found"], "ptb")


def test_without_java_there_is_no_mean_of_six(no_java):
    corpus = CAPTION_METRICS["mean_of_seven"](TEXTS, REFERENCES, "builtin")
    assert corpus.value is None
    assert corpus.reason.startswith("METEOR needs Java")
    assert corpus.parts.pop("meteor") is None
    assert set(corpus.parts) == {f"{name}_builtin" for name in WITHOUT_METEOR}
    assert len(corpus.values) == len(corpus.statistics) == len(TEXTS)


def test_without_java_figures_have_names_of_their_own(no_java):
    corpus = CAPTION_METRICS["cider"](TEXTS, REFERENCES, "builtin")
    assert corpus.metric == "cider_builtin"
    assert corpus.value == corpus.parts["cider_builtin"] > 0
    assert set(corpus.parts) == {f"{name}_builtin" for name in WITHOUT_METEOR}


@pytest.mark.parametrize("metric", CAPTION_NAMES)
def test_the_published_tokenizer_is_refused_without_java(no_java, metric):
    with pytest.raises(UserError, match="needs Java"):
        CAPTION_METRICS[metric](TEXTS, REFERENCES, "ptb")


@pytest.mark.parametrize("metric", CAPTION_NAMES)
def test_references_without_any_word_are_refused(metric):
    with pytest.raises(UserError, match="no reference caption holds a word"):
        CAPTION_METRICS[metric](["a dog", "a cat"], [["", "..."], ["\n"]], "builtin")


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(UserError, match="unknown tokenizer of captions 'moses'; choose one of builtin, ptb"):
        CAPTION_METRICS["cider"](TEXTS, REFERENCES, "moses")


def test_cider_of_one_question_is_not_a_number():
    corpus = CAPTION_METRICS["cider"](["a dog"], [["a dog"]], "builtin")
    assert corpus.value is None
    assert "two questions" in corpus.reason


@given(corpora)
@settings(max_examples=40, deadline=None)
def test_bleu_from_sums_is_what_its_scorer_says(corpus):
    texts, references = map(list, zip(*corpus, strict=True))
    of_corpus, of_each, counts = captions.measure_bleu(texts, references)
    assert aggregates.bleu(counts.sum(0)) == pytest.approx(of_corpus, abs=1e-12)
    assert aggregates.bleu(counts) == pytest.approx(of_each.T, abs=1e-12)


@given(corpora, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_cider_follows_from_its_questions_in_any_order(corpus, random):
    shuffled = random.sample(corpus, len(corpus))
    ordered, other = (
        CAPTION_METRICS["cider"](*map(list, zip(*one, strict=True)), "builtin") for one in (corpus, shuffled)
    )
    assert 100 * aggregates.AGGREGATES[ordered.aggregate](sum_statistics(ordered)) == pytest.approx(ordered.value)
    assert other.value == pytest.approx(ordered.value)
    by_question = dict(zip(map(repr, shuffled), other.values, strict=True))
    assert ordered.values == pytest.approx([by_question[repr(question)] for question in corpus])


@given(corpora)
@settings(max_examples=40, deadline=None)
def test_no_caption_beats_the_only_reference_and_an_empty_one_is_worth_nothing(corpus):
    texts, references = zip(*corpus, strict=True)
    only = [[several[0] or "dog"] for several in references]
    best = CAPTION_METRICS["cider"]([several[0] for several in only], only, "builtin")
    worse = CAPTION_METRICS["cider"](texts, only, "builtin")
    assert np.all(np.array(worse.values) <= np.array(best.values) + 1e-9)
    assert CAPTION_METRICS["cider"]([""] * len(only), only, "builtin").value == 0


def stub(code: str) -> list[str]:
    return [sys.executable, "-c", f"import sys\n{code}"]


@pytest.fixture
def own_process(monkeypatch):
    """METEOR's process is a stub here; the real one, if it runs, stays as it is."""
    monkeypatch.setattr(meteor, "_process", None)
    yield monkeypatch
    meteor.stop()


def test_a_process_that_died_is_started_again(own_process):
    own_process.setattr(meteor, "_command", lambda: stub("for line in sys.stdin: print(line, end='', flush=True)"))
    assert meteor.ask("one") == ["one"]
    first = meteor._process
    first.process.kill()
    first.process.wait()
    assert meteor.ask("two") == ["two"]
    assert meteor._process is not first


def test_a_process_that_dies_again_is_told_with_its_last_words(own_process):
    own_process.setattr(meteor, "_command", lambda: stub("sys.stdin.readline(); sys.exit('no room for the heap')"))
    with pytest.raises(UserError, match="no room for the heap"):
        meteor.ask("SCORE ||| a ||| a")


def test_an_answer_that_is_no_statistics_is_refused(own_process):
    own_process.setattr(meteor, "_command", lambda: stub("sys.stdin.readline(); print('1.0 2.0', flush=True)"))
    with pytest.raises(UserError, match="23 statistics"):
        meteor.count_matches(["never seen"], [["before"]])


def test_neither_spice_nor_a_scorer_is_loaded_before_it_is_needed():
    code = (
        "import sys; from eval.metrics.captions import CAPTION_METRICS; early = set(sys.modules);"
        "CAPTION_METRICS['cider'](['a', 'b'], [['a'], ['b']], 'builtin');"
        "CAPTION_METRICS['mean_of_seven'](['a', 'b'], [['a'], ['b']], 'builtin');"
        "print(*[name for name in early if 'pycoco' in name], *[name for name in sys.modules if 'spice' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
