import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from score_tables import made_rows, random_values, write_table
from statsmodels.stats.multitest import multipletests
from studies import small_pairs

from gliomap.cli.compare import compare as compare_command
from gliomap.compare import OUTPUTS, CompareOptions, asked_pairs, compare
from gliomap.errors import InputError, UsageError
from gliomap.evaluate import EvaluateOptions, evaluate
from gliomap.files import sha256
from gliomap.report.answers import Pair
from gliomap.rows import metric
from gliomap.statistics import TESTS, verdict


def run(tmp_path: Path, rows, name="scores.csv", failed=None, **options):
    tables = options.pop("scores", None) or (write_table(tmp_path / name, rows, failed),)
    return compare(CompareOptions(tables, options.pop("output", tmp_path / "out"), **options))


def lines(result):
    with (result.page.parent / "compare.csv").open() as stream:
        return {(line["a"], line["b"], line["region"], line["metric"]): line for line in csv.DictReader(stream)}


def test_every_number_of_the_table_is_scipys_and_statsmodels_over_pairs_and_regions_of_a_metric(tmp_path):
    values = random_values()
    found = lines(run(tmp_path, made_rows(values)))
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(found) == [(a, b, r, m) for m in ("dice", "hd95") for a, b in pairs for r in ("ET", "WT")]
    for name in ("dice", "hd95"):
        keys = [key for key in found if key[3] == name]
        differences = [np.subtract(values[a][r, m], values[b][r, m]) for a, b, r, m in keys]
        p = [stats.wilcoxon(d).pvalue for d in differences]
        for key, d, raw, holm in zip(keys, differences, p, multipletests(p, method="holm")[1], strict=True):
            line = found[key]
            assert float(line["difference"]) == pytest.approx(d.mean(), abs=1e-5)
            assert float(line["mean_a"]) == pytest.approx(np.mean(values[key[0]][key[2:]]), rel=1e-5)
            assert float(line["mean_b"]) == pytest.approx(np.mean(values[key[1]][key[2:]]), rel=1e-5)
            assert float(line["p"]) == pytest.approx(raw, rel=1e-5)
            assert float(line["p_holm"]) == pytest.approx(holm, rel=1e-5)
            assert float(line["low"]) <= d.mean() <= float(line["high"])
            assert (line["studies"], line["missing"], line["protocol"]) == ("12", "0", "plain")


def test_the_asked_test_is_used_with_the_seed(tmp_path):
    values = random_values(("a", "b"), studies=20)
    difference = np.subtract(values["a"]["ET", "dice"], values["b"]["ET", "dice"])
    for test in TESTS:
        found = lines(run(tmp_path, made_rows(values), test=test, seed=3))
        assert float(found["a", "b", "ET", "dice"]["p"]) == pytest.approx(TESTS[test](difference, 3), rel=1e-5)
        assert found["a", "b", "ET", "dice"]["test"] == test


def test_a_joined_side_is_the_mean_of_its_models_in_each_study(tmp_path):
    values = random_values(("a", "b", "c", "d"))
    values["b"]["ET", "dice"][2] = None
    found = lines(run(tmp_path, made_rows(values), pairs=("a+b:c + d",)))
    assert {key[:2] for key in found} == {("a + b", "c + d")}
    mean = {m: np.array(values[m]["ET", "dice"], float) for m in values}
    expected = (mean["a"] + mean["b"]) / 2 - (mean["c"] + mean["d"]) / 2
    line = found["a + b", "c + d", "ET", "dice"]
    assert float(line["difference"]) == pytest.approx(np.nanmean(expected), abs=1e-5)
    assert (line["studies"], line["missing"]) == ("11", "1")


def test_models_may_share_a_table_or_have_their_own_and_one_may_be_in_several(tmp_path):
    rows = made_rows(random_values())
    together = lines(run(tmp_path, rows))
    apart = [
        write_table(
            tmp_path / f"{model}{half}.csv", [r for r in rows if r.model == model and (r.study < "s06") == half]
        )
        for model in "abc"
        for half in (True, False)
    ]
    assert lines(run(tmp_path, rows, scores=tuple(apart))) == together


def test_the_same_score_twice_is_refused_with_both_tables(tmp_path):
    rows = made_rows(random_values())
    first = write_table(tmp_path / "first.csv", rows)
    again = write_table(tmp_path / "again.csv", rows[:1])
    with pytest.raises(InputError, match=r"s00 is there twice, in .*again\.csv and .*first\.csv.*--name"):
        run(tmp_path, rows, scores=(first, again))
    failed = write_table(tmp_path / "failed.csv", [], {"a": ["s00"]})
    with pytest.raises(InputError, match="once failed"):
        run(tmp_path, rows, scores=(first, failed))
    assert not (tmp_path / "out").exists()


def test_other_protocols_and_definitions_are_refused(tmp_path):
    ours = made_rows(random_values(("a",)))
    with pytest.raises(InputError, match=r"by the protocol brats2023, and .* by plain"):
        run(tmp_path, ours + made_rows(random_values(("b",)), protocol="brats2023"))
    theirs = [replace(r, definition="pooled") if r.metric == "hd95" else r for r in made_rows(random_values(("b",)))]
    with pytest.raises(InputError, match=r"metric hd95 by different definitions.*pooled"):
        run(tmp_path, ours + theirs)
    run(tmp_path, ours + theirs, metrics=("dice",))


def test_other_studies_are_refused_by_name_or_restricted_to_the_common_ones_and_said(tmp_path):
    rows = [
        r for r in made_rows(random_values()) if (r.model, r.study) not in {("b", "s03"), ("c", "s05"), ("c", "s03")}
    ]
    with pytest.raises(
        InputError, match=r"b lacks 1 of 12: s03\. c lacks 2 of 12: s03, s05\..*10 common ones with --common"
    ):
        run(tmp_path, rows)
    result = run(tmp_path, rows, common=True)
    assert {line["studies"] for line in lines(result).values()} == {"10"}
    assert result.warnings[:2] == [
        "left out 2 of 12 studies, which not every model has: s03, s05",
        "b lacks 1 of 12: s03",
    ]
    assert "left out 2 of 12 studies" in result.page.read_text()
    apart = made_rows(random_values(("a",))) + made_rows(random_values(("b",)), first=50)
    with pytest.raises(InputError, match="no study was scored for every model"):
        run(tmp_path, apart, common=True)


def test_a_study_with_other_scores_only_is_not_scored(tmp_path):
    values = random_values(("a", "b"))
    for columns in values.values():
        columns["ET", "volume"] = [1.0] * 12
    rows = [r for r in made_rows(values) if (r.model, r.study) != ("b", "s04") or r.metric == "volume"]
    with pytest.raises(InputError, match=r"b lacks 1 of 12: s04"):
        run(tmp_path, rows)


def test_what_a_model_was_not_scored_on_is_refused_or_left_out_and_said(tmp_path):
    rows = [r for r in made_rows(random_values()) if (r.model, r.region) != ("b", "ET")]
    with pytest.raises(InputError, match=r"dice ET: not of b; hd95 ET: not of b.*--common"):
        run(tmp_path, rows)
    result = run(tmp_path, rows, common=True)
    assert {key[2] for key in lines(result)} == {"WT"}
    assert "left out, since not every model has it: dice ET: not of b" in result.warnings
    assert run(tmp_path, rows, regions=("WT",)).warnings == []


def test_missing_values_and_failed_studies_are_counted_and_told(tmp_path):
    values = random_values(("a", "b"))
    values["b"]["ET", "hd95"][4] = None
    rows = [r for r in made_rows(values) if (r.model, r.study) != ("a", "s07")]
    result = run(tmp_path, rows, failed={"a": ["s07"]})
    found = lines(result)
    assert {key[2:]: line["missing"] for key, line in found.items()} == {
        ("ET", "dice"): "1", ("WT", "dice"): "1", ("ET", "hd95"): "2", ("WT", "hd95"): "1",
    }  # fmt: skip
    assert result.warnings[0] == "a failed in 1 of 12 studies: s07"
    answer = next(a for a in result.answers if (a.region, a.metric) == ("ET", "hd95"))
    assert [(side.gone, side.empty, side.lost) for side in answer.absent] == [(1, 0, 1), (1, 0, 1)]
    assert np.flatnonzero(np.isnan(answer.differences)).tolist() == [4, 7]
    assert "10 studies, 2 more left out: first 1 without a value, second 1 without a value;" in " ".join(
        result.sentences
    )


def test_models_scored_against_other_truths_are_refused(tmp_path):
    values = random_values(("a", "b"))
    for model, volume in (("a", 12.3456), ("b", 12.3457)):
        values[model]["ET", "volume_truth"] = [volume] * 12
    run(tmp_path, made_rows(values))
    values["b"]["ET", "volume_truth"][5] = 12.4
    with pytest.raises(InputError, match=r"different truths: ET of s05 has 12\.3456 ml for a, 12\.4 ml for b"):
        run(tmp_path, made_rows(values))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("iou",)}, "the tables have no iou; they have dice, hd95"),
        ({"metrics": ("volume",)}, "volume is a quantity"),
        ({"regions": ("NCR",)}, "no region NCR; they have ET, WT"),
        ({"test": "sign"}, "no paired test is called 'sign'; expected one of wilcoxon, t, permutation"),
        ({"baseline": "aa"}, "no model is called 'aa' in these tables; near it is a"),
        ({"pairs": ("a:zebra",)}, "no model is called 'zebra' in these tables; there are a, b, c"),
        ({"pairs": ("a",)}, "as A:B"),
        ({"pairs": ("a:b", "b:a")}, "asked twice"),
        ({"pairs": ("a+b:b",)}, "has a model twice"),
        ({"pairs": ("a+a:b",)}, "has a model twice"),
        ({"pairs": ("a:b",), "baseline": "a"}, "give one"),
    ],
)
def test_what_is_not_there_is_wrong_usage(tmp_path, options, message):
    values = random_values()
    for columns in values.values():
        columns["ET", "volume"] = [1.0] * 12
    with pytest.raises(UsageError, match=message):
        run(tmp_path, made_rows(values), **options)
    assert not (tmp_path / "out").exists()


def test_one_model_or_no_score_is_nothing_to_compare(tmp_path):
    with pytest.raises(UsageError, match="scores of one model only, a"):
        run(tmp_path, made_rows(random_values(("a",))))
    with pytest.raises(InputError, match="no scores in"):
        run(tmp_path, [], failed={"a": ["s00"]})


def test_pairs_are_all_or_each_against_the_baseline_or_the_asked_ones():
    models = ("a", "b", "c")
    assert asked_pairs(models, None, ()) == [Pair(("a",), ("b",)), Pair(("a",), ("c",)), Pair(("b",), ("c",))]
    assert asked_pairs(models, "b", ()) == [Pair(("a",), ("b",)), Pair(("c",), ("b",))]
    assert asked_pairs(models, None, ["c:a"]) == [Pair(("c",), ("a",))]
    odd = ("a:1", "b+2", "b", "c")
    assert asked_pairs(odd, None, ["a:1:b+2"]) == [Pair(("a:1",), ("b+2",))]
    assert asked_pairs(odd, None, ["b+c:a:1"]) == [Pair(("b", "c"), ("a:1",))]


def test_both_orders_say_the_same(tmp_path):
    rows = made_rows(random_values(("a", "b")))
    (one,) = run(tmp_path, rows, pairs=("a:b",), metrics=("dice",), regions=("ET",)).answers
    (other,) = run(tmp_path, rows, pairs=("b:a",), metrics=("dice",), regions=("ET",)).answers
    assert one.comparison.difference == -other.comparison.difference
    assert {"supported": "not supported", "not supported": "supported"}.get(one.verdict, one.verdict) == other.verdict


PENALIZED = (("lesion_dice", "brats2025", 0.0), ("lesion_hd95", "brats2025", 373.0), ("precision", "plain", 0.0))


@pytest.mark.parametrize(("name", "protocol", "invented"), PENALIZED)
def test_a_model_that_is_right_about_nothing_ranks_first_and_never_looks_worse(tmp_path, name, protocol, invented):
    """8 of 12 studies have no ET; one model is perfect, the other invents 8 voxels there."""
    perfect_value = 1.0 if metric(name).better == "higher" else 0.0
    column = ("ET", name)
    perfect = made_rows(
        {"perfect": {column: [None] * 8 + [perfect_value] * 4}}, protocol=protocol, missing="both_empty"
    )
    inventing = made_rows(
        {"inventing": {column: [invented] * 8 + [perfect_value] * 4}}, protocol=protocol, status="truth_empty"
    )
    for models in (("perfect", "inventing"), ("inventing", "perfect")):
        rows = sorted(perfect + inventing, key=lambda row: models.index(row.model))
        result = run(tmp_path, rows, metrics=(name,))
        page = result.page.read_text()
        places = re.search(r"Ranking over everything.*?</table>", page, re.DOTALL)[0]
        assert places.index("perfect</th>") < places.index("inventing</th>")
        assert "inventing is not empty in 8 studies in which perfect correctly is" in " ".join(result.sentences)
        assert not re.search("it is better|it is worse|no difference", " ".join(result.sentences))
        table = (result.page.parent / "table.md").read_text()
        assert re.search(r"\| perfect \| \*\*.*\(4, 8 correctly empty\)", table)
        assert "missing" not in re.sub("what is missing counted|more missing values", "", table)
        assert "(8 correctly empty)</text>" in page
        assert result.warnings == []


def test_no_model_is_better_for_leaving_out_what_it_has_no_value_for(tmp_path):
    values = random_values(("a", "b"), columns=(("ET", "dice"),))
    values["a"]["ET", "dice"] = [v + 0.3 + 0.01 * i for i, v in enumerate(values["b"]["ET", "dice"])]
    decided = run(tmp_path, made_rows(values))
    assert decided.answers[0].verdict == "supported"
    values["a"]["ET", "dice"][2] = None
    for pair, held in (("a:b", "supported"), ("b:a", "not supported")):
        result = run(tmp_path, made_rows(values), pairs=(pair,))
        assert verdict(result.answers[0].comparison, higher_is_better=True) == held
        assert result.answers[0].verdict == "undecided"
        assert "undecided. a has no value in 1 study in which b has one." in result.sentences[0]
        assert "in the studies that both have (" in result.sentences[0]
    values["b"]["ET", "dice"][3] = None
    assert run(tmp_path, made_rows(values)).answers[0].verdict == "supported"


def test_without_metrics_the_usual_ones_are_taken_and_regions_keep_their_order(tmp_path):
    columns = [
        ("WT", "lesion_dice"),
        ("", "mean_iou_of_classes"),
        ("ET", "lesion_dice"),
        ("ET", "volume"),
        ("NCR", "lesion_dice"),
    ]
    rows = made_rows(random_values(("a", "b"), columns=columns))
    assert [key[2:] for key in lines(run(tmp_path, rows))] == [(r, "lesion_dice") for r in ("ET", "WT", "NCR")]
    other = [r for r in rows if r.metric != "lesion_dice"]
    assert [key[2:] for key in lines(run(tmp_path, other))] == [("", "mean_iou_of_classes")]
    both = run(tmp_path, rows, metrics=("mean_iou_of_classes", "lesion_dice"), regions=("ET",))
    assert [key[2:] for key in lines(both)] == [("", "mean_iou_of_classes"), ("ET", "lesion_dice")]


def test_the_page_shows_the_label_maps_that_were_scored_and_says_where_it_cannot(tmp_path):
    pairs, table = tmp_path / "pairs", tmp_path / "scores.csv"
    ids = small_pairs(pairs, 3)
    match = {"match": "{study}/pred_{model}.nii.gz", "match_truth": "{study}/truth.nii.gz"}
    labels = {"labels": "brats2021", "truth_labels": "brats2021"}
    evaluate(EvaluateOptions(pairs, pairs, table, metrics=("dice",), quiet=True, **match, **labels))

    def page():
        result = run(tmp_path, None, scores=(table,))
        record = json.loads((result.page.parent / "run.json").read_text())
        return result.page.read_text(), record["pictures_of"], record["not_shown"]

    text, shown, not_shown = page()
    assert (sorted(shown), not_shown) == (ids, [])
    assert re.findall(r'alt="case_0, [^"]*outlines of ([^"]*)"', text) == ["the reference", "a", "b"]
    assert 'href="#studies"' in text
    (pairs / ids[0] / "truth.nii.gz").unlink()
    (pairs / ids[1] / "pred_b.nii.gz").write_bytes(b"another")
    text, shown, not_shown = page()
    assert sorted(shown) == ids[1:]
    assert sorted(not_shown) == [
        "the prediction of b of case_1 is no longer the file that was scored",
        "the truth of case_0 is no longer the file that was scored",
    ]
    assert f"Not shown: {not_shown[0]}; {not_shown[1]}." in " ".join(text.split())
    (tmp_path / "scores.run.json").unlink()
    text, shown, not_shown = page()
    assert shown == []
    assert "There are no pictures: scores.csv: there is no scores.run.json beside it" in text
    assert "<img" not in text


def test_what_is_written_is_whole_recorded_and_only_written_over_by_itself(tmp_path):
    rows = made_rows(random_values())
    result = run(tmp_path, rows, seed=5)
    out = result.page.parent
    assert sorted(p.name for p in out.iterdir()) == sorted(OUTPUTS)
    record = json.loads((out / "run.json").read_text())
    table = tmp_path / "scores.csv"
    assert (record["verb"], record["options"]["seed"]) == ("compare", 5)
    assert record["inputs_sha256"] == {str(table): sha256(table)}
    assert (record["models"], len(record["studies"])) == (["a", "b", "c"], 12)
    before = {name: (out / name).read_bytes() for name in OUTPUTS[:-1]}
    run(tmp_path, rows, seed=5)
    assert {name: (out / name).read_bytes() for name in OUTPUTS[:-1]} == before
    (out / "run.json").write_text('{"verb": "train"}')
    with pytest.raises(InputError, match="output of another command"):
        run(tmp_path, rows)
    assert {name: (out / name).read_bytes() for name in OUTPUTS[:-1]} == before


def test_a_table_to_compare_is_never_written_over(tmp_path):
    rows = made_rows(random_values())
    (tmp_path / "out").mkdir()
    table = write_table(tmp_path / "out" / "compare.csv", rows)
    with pytest.raises(InputError, match="is one of the tables to compare"):
        run(tmp_path, rows, scores=(table,))
    assert table.read_bytes().startswith(b"study,model")


def test_few_studies_are_told_that_nothing_can_be_shown(tmp_path):
    result = run(tmp_path, made_rows(random_values(studies=4)))
    assert not any(answer.reachable for answer in result.answers)
    assert (
        "With 4 studies no Wilcoxon signed-rank test can reach 0.05 after Holm's correction over 6 comparisons"
        in result.sentences[0]
    )
    assert all(answer.reachable for answer in run(tmp_path, made_rows(random_values(studies=9))).answers)
    assert all(answer.reachable for answer in run(tmp_path, made_rows(random_values(studies=4)), test="t").answers)


def test_the_command_prints_sentences_and_page_or_json(tmp_path, capsys):
    values = random_values(("a", "b"))
    table, out = write_table(tmp_path / "scores.csv", made_rows(values)), tmp_path / "out"
    compare_command([table], out, metrics="dice", regions="ET, WT", pair=["b:a"])
    shown = capsys.readouterr().out.splitlines()
    assert [text[:14] for text in shown[:-2]] == ["ET: b has a me", "WT: b has a me"]
    assert shown[-2].startswith("0 of 2 comparisons decide")
    assert shown[-1] == str(out / "compare.html")
    compare_command([table], out, metrics="dice", regions="WT")
    assert [text[:14] for text in capsys.readouterr().out.splitlines()[:-2]] == ["WT: a has a me"]
    compare_command([table], out, baseline="a", json=True)
    told = json.loads(capsys.readouterr().out)
    assert [(c["a"], c["b"], c["region"]) for c in told["comparisons"]] == [("b", "a", r) for r in ("ET", "WT")] * 2
    assert told["comparisons"][0]["p_holm"] == pytest.approx(float(lines_of(out)[0]["p_holm"]), rel=1e-5)
    compare_command([table], out, quiet=True)
    assert capsys.readouterr().out == ""


def test_of_many_comparisons_that_nobody_asked_for_the_command_prints_those_that_decide(tmp_path, capsys):
    values = random_values(("a", "b", "c", "d"), studies=12)
    values["d"] = {
        (region, name): [v + (0.3 if name == "dice" else -3.0) for v in column]
        for (region, name), column in values["d"].items()
    }
    table = write_table(tmp_path / "scores.csv", made_rows(values))
    compare_command([table], tmp_path / "out")
    shown = capsys.readouterr().out.splitlines()
    assert 0 < len(shown) - 2 < 24
    assert all(" better." in text or " worse." in text for text in shown[:-2])
    assert shown[-2] == f"{len(shown) - 2} of 24 comparisons decide; all are on the page"


def lines_of(out: Path):
    with (out / "compare.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_comparing_never_imports_torch(tmp_path):
    table = write_table(tmp_path / "scores.csv", made_rows(random_values()))
    code = (
        "import sys\nfrom pathlib import Path\nfrom gliomap.compare import CompareOptions, compare\n"
        f"compare(CompareOptions((Path({str(table)!r}),), Path({str(tmp_path / 'out')!r})))\n"
        "print([m for m in ('torch', 'monai', 'matplotlib') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
