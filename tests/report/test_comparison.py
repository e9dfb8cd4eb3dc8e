import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from gliomap.ranking import friedman, ranking
from gliomap.report.answers import Pair, answers_to, outcome
from gliomap.report.comparison import MOST_SENTENCES, ComparisonReport, breakable, comparison_page
from gliomap.report.scores import Scores

VOID = {"meta", "wbr", "br", "img", "link", "input", "hr"}


def report(models=("alpha", "beta", "gamma"), studies=15, pairs=None, regions=("ET", "WT"), missing=(), **changes):
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 0.1, studies)
    values, status = {}, {}
    for name in ("dice", "hd95"):
        for region in regions:
            table = np.stack([0.7 + 0.03 * k + hard + rng.normal(0, 0.03, studies) for k in range(len(models))], axis=1)
            table = table if name == "dice" else 30 * (1.2 - table)
            table[[i for i, _ in missing], [k for _, k in missing]] = np.nan
            values[region, name] = table
            status[region, name] = np.where(np.isnan(table), "failed", "ok")
    scores = Scores(tuple(f"study {i}" for i in range(studies)), tuple(models), values, status, "plain")
    asked = pairs or [Pair((a,), (b,)) for i, a in enumerate(models) for b in models[i + 1 :]]
    answers = tuple(answers_to(asked, scores, "wilcoxon", 0))
    return ComparisonReport(
        scores, answers, "wilcoxon", 0, changes.get("warnings", ()), changes.get("inputs", {"a.csv": "ab" * 32})
    )


class Page(HTMLParser):
    """Visible text, in order; and whether every element that opens is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.ids: list[str] = []
        self.feed(page)
        assert self.open == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        self.text += "" if tag in ("wbr", "b", "code") else " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title", "desc"} & set(self.open):
            self.text += data


def test_the_answers_come_first_then_scores_plots_ranks_differences():
    made = report()
    text = Page(comparison_page(made)).text
    mean = made.scores.values["ET", "dice"][:, 0].mean()
    order = [
        "3 models on 15 studies",
        "ET: alpha has a mean Dice",
        f"{mean:.3f} ± ",
        "A dot is a study",
        "A bar joins models",
    ]
    order += ["Ranking over everything", "Are two ranked apart?", "First minus second", "SHA-256"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_the_page_is_one_file_without_scripts_or_links_to_anywhere():
    page = comparison_page(report())
    targets = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']([^"']*)|url\(([^)]*)""", page)
    assert all(attribute.startswith("#") and not url for attribute, url in targets)
    assert not re.search("://|@import|<script", page)
    assert "default-src 'none'" in page
    reader = Page(page)
    assert len(set(reader.ids)) == len(reader.ids)
    assert {attribute[1:] for attribute, _ in targets} <= set(reader.ids)


def test_everything_from_outside_is_escaped():
    attack = '<script>alert("1")</script>'
    made = report(models=(attack, "b&c", "d"), warnings=(attack,), inputs={attack: attack})
    page = comparison_page(made)
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") > 20
    assert attack in Page(page).text


def test_a_chart_per_column_kind_and_pair_and_each_is_whole():
    page = comparison_page(report())
    charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    assert len(charts) == 4 + 4 + 3 * 4
    assert all(chart[0].tag == "title" and chart[1].tag == "desc" and chart.get("role") == "img" for chart in charts)


def test_sides_of_a_difference_are_the_right_way_round_for_distances():
    page = comparison_page(report(models=("alpha", "beta"), regions=("ET",)))
    charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    up = {c[0].text: [e.text for e in c.iter("text") if e.text.startswith("↑")] for c in charts if "minus" in c[0].text}
    assert up == {
        "ET: Dice, alpha minus beta": ["↑ alpha better"],
        "ET: HD95 in mm, alpha minus beta": ["↑ beta better"],
    }


def charts_of(page):
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def ranked_in(page):
    """What each critical-difference diagram says, in words."""
    return [chart[1].text for chart in charts_of(page) if chart[1].text.startswith("Mean ranks")]


def joined_in(text):
    """The pairs of models that share a bar."""
    groups = text.split("Not told apart: ")[1].split("; ")
    return {frozenset(pair) for group in groups for pair in itertools.combinations(group.split(", "), 2)}


@pytest.mark.parametrize("models", [2, 3, 5, 8])
@pytest.mark.parametrize("studies", [4, 15, 40])
def test_bars_join_two_models_just_where_the_answers_do_not_tell_them_apart(models, studies):
    made = report(models=tuple(f"model{k}" for k in range(models)), studies=studies)
    told = dict(zip(made.scores.values, ranked_in(comparison_page(made)), strict=True))
    for column, text in told.items():
        answers = [answer for answer in made.answers if (answer.region, answer.metric) == column]
        expected = {frozenset((*a.pair.a, *a.pair.b)) for a in answers if outcome(a) not in ("better", "worse")}
        assert joined_in(text) == expected


def test_critical_differences_have_the_best_model_first_also_for_distances_and_say_what_friedman_found():
    page = comparison_page(report(regions=("ET",)))
    assert [re.findall("alpha|beta|gamma", text)[:3] for text in ranked_in(page)] == [["gamma", "beta", "alpha"]] * 2
    made = report(regions=("ET",))
    found = friedman(made.scores.values["ET", "dice"])
    assert f"Friedman: chi-squared {found.statistic:.1f}, p" in page
    two = comparison_page(report(models=("alpha", "beta"), regions=("ET",)))
    assert len(ranked_in(two)) == 2
    assert "Friedman" not in two


def test_friedmans_test_never_decides_over_a_bar():
    """Nemenyi's test would join what the pairs tell apart: ranks of many models say little of two."""
    models = ("alpha", "beta", *(f"other{k}" for k in range(6)))
    rng = np.random.default_rng(0)
    table = rng.random((30, 8))
    table[:, 1] = table[:, 0] - 0.01 * (1 + rng.random(30))
    made = report(models=models, studies=30, regions=("ET",))
    scores = replace(made.scores, values=dict.fromkeys(made.scores.values, table))
    asked = [answer.pair for answer in made.answers if answer.metric == "dice"]
    answers = tuple(answers_to(asked, scores, "wilcoxon", 0))
    page = comparison_page(replace(made, scores=scores, answers=answers))
    assert friedman(table).p > 0.05
    assert frozenset(("alpha", "beta")) not in joined_in(ranked_in(page)[0])
    assert frozenset(("alpha", "other0")) in joined_in(ranked_in(page)[0])


def test_where_not_every_two_were_compared_there_are_no_bars_and_it_is_said():
    asked = [Pair(("alpha",), ("beta",)), Pair(("alpha",), ("gamma",)), Pair(("alpha", "beta"), ("gamma",))]
    page = comparison_page(report(pairs=asked))
    assert all("told apart" not in text for text in ranked_in(page))
    assert "There are no bars, since not every two models were compared" in Page(page).text
    whole = comparison_page(report(pairs=[*asked, Pair(("beta",), ("gamma",))]))
    assert "There are no bars" not in Page(whole).text
    assert all("told apart" in text for text in ranked_in(whole))


def test_a_mark_is_only_at_what_was_asked_about():
    few = comparison_page(report(regions=("ET",), pairs=[Pair(("alpha",), ("gamma",))]))
    assert '<td class="number">· 0.' in few
    assert '<td class="number best">0.' in few


def test_ranks_and_friedman_take_what_is_correctly_empty_as_best():
    made = report(regions=("ET",), missing=[(i, 0) for i in range(12)])
    status = {column: np.where(why == "failed", "both_empty", why) for column, why in made.scores.status.items()}
    empty = comparison_page(replace(made, scores=replace(made.scores, status=status)))
    charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", empty, re.DOTALL)]
    ranked = [chart[1].text for chart in charts if chart[1].text.startswith("Mean ranks")]
    assert [re.findall("alpha|beta|gamma", text)[0] for text in ranked] == ["alpha"] * 2
    text = Page(empty).text
    assert "3 studies, 12 correctly empty" in text
    assert re.search(r"alpha (3 of 15; 12 both empty ?){2}", text)
    assert "missing" not in " ".join(chart[1].text.replace("0 missing", "") for chart in charts)
    assert "12 correctly empty" in next(chart[1].text for chart in charts if "alpha minus beta" in chart[0].text)


def test_a_pair_in_which_one_side_failed_is_drawn_as_missing():
    made = report(models=("alpha", "beta"), regions=("ET",), missing=[(0, 0), (1, 1)])
    charts = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", comparison_page(made), re.DOTALL)]
    described = [chart[1].text for chart in charts if "alpha minus beta" in chart[0].text]
    assert len(described) == 2
    assert all("13 values, 2 missing;" in text for text in described)


def test_small_differences_are_not_nothing_in_the_largest():
    made = report(models=("alpha", "beta"), regions=("ET",))
    column = ("ET", "dice")
    near = np.full((15, 2), 0.99987)
    near[:, 1] += np.arange(15) * 3e-6
    scores = replace(made.scores, values={column: near}, status={column: made.scores.status[column]})
    answers = tuple(answers_to([Pair(("alpha",), ("beta",))], scores, "wilcoxon", 0))
    text = Page(comparison_page(replace(made, scores=scores, answers=answers))).text
    assert "study 14 0.99987 0.99991 -0.000042" in text


def test_ranks_are_the_rankings_with_missing_values_worst():
    made = report(missing=[(i, 2) for i in range(12)])
    values = np.stack(list(made.scores.values.values()), axis=2)
    expected = ranking(values, [True, True, False, False], 0)
    assert expected.places.tolist() == [2, 1, 3]
    text = Page(comparison_page(made)).text.split("Ranking over everything")[1]
    rows = [text.index(f"{name} {place}") for name, place in (("beta", 1), ("alpha", 2), ("gamma", 3))]
    assert rows == sorted(rows)
    assert f"beta 1 {expected.mean_ranks[1]:.2f}" in text
    shares = " ".join(f"{100 * share:.0f} %" for share in expected.place_shares[2])
    assert shares in text


def test_what_is_missing_is_counted_for_every_model_and_column():
    text = Page(comparison_page(report(missing=[(0, 2), (4, 2), (5, 0)]))).text
    counted = text.split("Missing and empty Model")[1]
    assert re.search(r"alpha (14 of 15; 1 failed ?){4}beta (15 of 15 ?){4}gamma (13 of 15; 2 failed ?){4}", counted)
    assert "13 studies, 2 missing" in text
    assert "Every model has every value" not in text
    whole = Page(comparison_page(report())).text
    assert "Every model has every value" in whole
    assert "Missing and empty Model" not in whole


def test_joined_sides_are_explained_and_drawn():
    text = Page(comparison_page(report(pairs=[Pair(("alpha", "beta"), ("gamma",))]))).text
    assert "ET: alpha + beta has a mean Dice" in text
    assert "alpha + beta: the mean of these models in each study" in text
    assert "alpha + beta against gamma" in text


def test_many_pairs_show_the_best_model_first_and_leave_nothing_out():
    models = tuple(f"model{k}" for k in range(8))
    made = report(models=models)
    page = comparison_page(made)
    text = Page(page).text
    per_metric = len(made.answers) // 2
    assert per_metric > MOST_SENTENCES
    assert len(re.findall(r"has a mean (?:Dice|HD95)", text)) == len(made.answers)
    first = re.findall(r"<li>(.*?)</li>", page.split("<details>")[0], re.DOTALL)
    decided = [answer for answer in made.answers if answer.metric == "dice" and outcome(answer) != "undecided"]
    assert len(first) == len(decided) > 0
    assert not any("undecided" in item for item in first)
    assert f"{len(decided)} of {per_metric} comparisons are decided:" in text
    shown = re.findall(r"<h3>(\S+ against \S+)</h3>", page)
    assert len(shown) == 6
    assert all("model7" in name for name in shown)
    assert "22 more are in compare.csv" in text


def test_where_nothing_is_decided_the_best_model_comes_first():
    made = report(models=tuple("abcdef"), studies=3)
    assert not any(outcome(answer) != "undecided" for answer in made.answers)
    page = comparison_page(made)
    best = re.search(r"0 of \d+ comparisons are decided\. First those of (\w), which ranks best", Page(page).text)[1]
    first = re.findall(r"<li><b>..:</b>(.*?)</li>", page.split("<details>")[0], re.DOTALL)
    assert len(first) == 2 * 5
    assert all(re.search(rf"\b{best} has a mean|than {best}\b", item) for item in first)


def test_a_thousand_studies_and_ten_long_names_stay_small():
    models = tuple(f"a_network_with_a_long_name_{'of_many_parts_' * 8}{k}" for k in range(4))
    page = comparison_page(report(models=models, studies=1000, regions=("ET",)))
    assert len(page) < 1_000_000
    labels = re.findall(r'<text class="name"[^>]*>([^<]*)</text>', page)
    assert labels
    assert max(map(len, labels)) <= 60
    assert "its name shows" not in page


def test_the_largest_differences_are_named_with_both_values():
    made = report(models=("alpha", "beta"), regions=("ET",))
    values = made.scores.values["ET", "dice"]
    worst = int(np.abs(values[:, 0] - values[:, 1]).argmax())
    text = Page(comparison_page(made)).text.split("Largest differences Study First Second Difference")[1]
    a, b = values[worst]
    assert text.strip().startswith(f"study {worst} {a:.3f} {b:.3f} {a - b:+.3f}")


def test_published_numbers_stand_under_their_statement():
    text = Page(comparison_page(report(models=("druwas-0a1b2c3d", "nnunet")))).text.split(
        "Published numbers beside these"
    )[1]
    assert text.strip().startswith("None of them is a score on these studies.")
    assert "druwas-0a1b2c3d: paper 001, table 4 Not comparable" in text
    assert "nnunet" not in text
    assert "Published numbers" not in comparison_page(report())


@pytest.mark.parametrize("name", ["plain", "a_b", "cga_unet_fair-0a1b", "__x", "a.b+c", "<b>_&"])
def test_names_break_at_their_parts_and_stay_what_they_are(name):
    assert Page(f"<p>{breakable(name)}</p>").text == name
    assert breakable("a_b-c") == "a_<wbr>b-<wbr>c"
