import csv
from collections import defaultdict
from dataclasses import fields
from importlib.resources import files
from typing import get_args

import pytest

from gliomap.recipes import RECIPES
from gliomap.recipes.published import How, Published, published

NUMBERS = published()

SCORES = """
000 1 dual_fusion_dynunet      dice  TC 0.7857 ET 0.7749 WT 0.8623
000 1 dual_fusion_segresnet    dice  TC 0.74489 ET 0.6681 WT 0.81753
000 2 dual_fusion_late         dice  TC 0.81713 ET 0.73897 WT 0.88829
000 2 dual_fusion_early        dice  TC 0.79925 ET 0.76008 WT 0.89303
000 2 dual_fusion              dice  TC 0.84107 ET 0.77842 WT 0.90267
000 3 dual_fusion              dice  TC 0.8411 ET 0.77842 WT 0.9027
001 1 druwas                   dice  WT 0.9096 TC 0.8869 ET 0.8385
001 1 druwas                   hd95  WT 1.5853 TC 2.5981 ET 2.6794
001 1 druwas_swish             dice  WT 0.9115 TC 0.9137 ET 0.8584
001 1 druwas_swish             hd95  WT 1.4195 TC 1.9541 ET 2.2840
001 2 druwas_swish             dice  WT 0.8968 TC 0.8524 ET 0.7968
001 2 druwas_swish             hd95  WT 2.6901 TC 4.6084 ET 5.0269
001 3 druwas_swish             dice  WT 0.8939 TC 0.8502 ET 0.8117
001 3 druwas_swish             hd95  WT 2.0616 TC 3.5858 ET 4.3453
001 4 druwas_baseline          dice  WT 0.8489 TC 0.7181 ET 0.5915
001 4 druwas_baseline          hd95  WT 3.2305 TC 6.0357 ET 18.084
001 4 druwas_sa                dice  WT 0.8380 TC 0.7465 ET 0.6793
001 4 druwas_sa                hd95  WT 3.4882 TC 4.8240 ET 8.1997
001 4 druwas_ag                dice  WT 0.8779 TC 0.7710 ET 0.7551
001 4 druwas_ag                hd95  WT 3.5241 TC 3.7701 ET 2.7929
001 4 druwas_sa_ag             dice  WT 0.8693 TC 0.8026 ET 0.7792
001 4 druwas_sa_ag             hd95  WT 3.7875 TC 3.8907 ET 2.9142
001 4 druwas_resnet            dice  WT 0.8986 TC 0.8586 ET 0.7896
001 4 druwas_resnet            hd95  WT 3.1693 TC 2.5136 ET 3.2973
001 4 druwas                   dice  WT 0.9096 TC 0.8869 ET 0.8385
001 4 druwas                   hd95  WT 1.5853 TC 2.5981 ET 2.6794
001 4 druwas_swish             dice  WT 0.9115 TC 0.9137 ET 0.8584
001 4 druwas_swish             hd95  WT 1.4195 TC 1.9541 ET 2.2840
001 section_5.2 druwas_swish   dice  WT 0.9121 TC 0.9121 ET 0.8583
001 section_5.2 druwas_swish   hd95  WT 1.2261 TC 1.33527 ET 1.6837
002 2 cga_unet                 dice  ET 78.83 WT 89.29 TC 82.32
002 2 cga_unet                 hd95  ET 3.262 WT 5.809 TC 6.721
002 4 cga_unet_baseline        dice  ET 74.47 WT 88.35 TC 79.75
002 4 cga_unet_baseline        hd100 ET 29.860 WT 52.748 TC 28.481
002 4 cga_unet_intra           dice  ET 78.60 WT 90.07 TC 81.66
002 4 cga_unet_intra           hd100 ET 18.173 WT 35.034 TC 25.300
002 4 cga_unet_intra_ncr       dice  ET 77.16 WT 89.92 TC 81.17
002 4 cga_unet_intra_ncr       hd100 ET 23.448 WT 40.934 TC 24.253
002 4 cga_unet_intra_ed        dice  ET 77.64 WT 89.03 TC 82.30
002 4 cga_unet_intra_ed        hd100 ET 22.962 WT 50.669 TC 24.042
002 4 cga_unet_intra_et        dice  ET 77.96 WT 89.56 TC 80.91
002 4 cga_unet_intra_et        hd100 ET 24.021 WT 46.688 TC 27.859
002 4 cga_unet_inter           dice  ET 78.09 WT 89.33 TC 82.54
002 4 cga_unet_inter           hd100 ET 18.783 WT 45.704 TC 19.938
002 4 cga_unet_minus_inter     dice  ET 73.71 WT 87.57 TC 78.21
002 2 cga_unet_unet3d          dice  ET 70.86 WT 87.38 TC 72.48
002 2 cga_unet_unet3d          hd95  ET 5.062 WT 9.432 TC 8.719
002 2 cga_unet_vnet            dice  ET 73.89 WT 88.73 TC 76.56
002 2 cga_unet_vnet            hd95  ET 6.131 WT 6.256 TC 8.705
002 2 cga_unet_attention_unet  dice  ET 75.96 WT 88.81 TC 77.20
002 2 cga_unet_attention_unet  hd95  ET 5.202 WT 7.756 TC 8.258
002 2 cga_unet_dynunet         dice  ET 74.80 WT 90.81 TC 83.90
002 2 cga_unet_dynunet         hd95  ET 3.77 WT 4.36 TC 6.42
002 4 cga_unet_minus_inter     hd100 ET 35.674 WT 53.793 TC 29.140
002 4 cga_unet                 dice  ET 79.21 WT 89.80 TC 83.46
002 4 cga_unet                 hd100 ET 17.418 WT 32.440 TC 19.833
002 5 cga_unet_baseline        dice_sd ET 30.28 WT 7.47 TC 13.68
002 5 cga_unet_baseline        hd100_sd ET 23.38 WT 25.91 TC 25.48
002 5 cga_unet_intra           dice_sd ET 29.14 WT 6.71 TC 10.41
002 5 cga_unet_intra           hd100_sd ET 21.60 WT 22.19 TC 20.16
002 5 cga_unet_intra_ncr       dice_sd ET 26.75 WT 6.57 TC 13.56
002 5 cga_unet_intra_ncr       hd100_sd ET 17.56 WT 24.33 TC 17.80
002 5 cga_unet_intra_ed        dice_sd ET 28.21 WT 6.80 TC 14.87
002 5 cga_unet_intra_ed        hd100_sd ET 21.49 WT 25.24 TC 23.69
002 5 cga_unet_intra_et        dice_sd ET 28.17 WT 6.11 TC 12.70
002 5 cga_unet_intra_et        hd100_sd ET 16.42 WT 26.58 TC 17.75
002 5 cga_unet_inter           dice_sd ET 29.25 WT 7.23 TC 12.81
002 5 cga_unet_inter           hd100_sd ET 20.17 WT 25.97 TC 22.26
002 5 cga_unet                 dice_sd ET 27.71 WT 6.43 TC 12.11
002 5 cga_unet                 hd100_sd ET 16.15 WT 21.49 TC 20.23
004 section_4.2 attention_resunet_unet3d   dice WT 0.904 TC 0.812 ET 0.765
004 section_4.2 attention_resunet_unet3d   hd95 WT 8.0 TC 14.2 ET 13.6
004 section_4.2 attention_resunet_baseline dice WT 0.907 TC 0.820 ET 0.771
004 section_4.2 attention_resunet_baseline hd95 WT 7.8 TC 14.0 ET 13.2
004 section_4.2 attention_resunet          dice WT 0.915 TC 0.835 ET 0.788
004 section_4.2 attention_resunet          hd95 WT 6.9 TC 12.4 ET 11.9
004 section_4.3 attention_resunet_baseline  dice WT 0.907
004 section_4.3 attention_resunet_attention dice WT 0.912
004 section_4.3 attention_resunet_fusion    dice WT 0.915
004 section_4.3 attention_resunet           dice WT 0.920
"""
"""What the papers' own rows score, copied from the papers a second time."""

OTHERS = {
    "000": "Zhang .9 .836 .791; Zhou .876 .784 .688; Akbar .896 .798 .777",  # Dice WT TC ET
    "002": "KiU-Net 73.21 87.60 73.92 6.323 8.942 9.893; Wang 73.70 89.40 80.70 5.994 5.677 7.357; "
    "Li 77.10 88.60 81.30 6.033 6.232 7.409",  # Dice ET WT TC, HD95 ET WT TC
}

SIZES = {
    ("cga_unet_self_attention", "3"): (4.495, 0.492),
    ("cga_unet_context_prior", "3"): (2.284, 0.328),
    ("cga_unet", "3"): (0.675, 0.095),
    ("cga_unet_sam_4", "3"): (1.97, 0.034),
    ("cga_unet_sam_2", "3"): (2.89, 0.01),
    ("cga_unet", "section 4.3"): (151.12, 4.77),
    ("attention_resunet_baseline", "section 4.3"): (12.8, 3.4),
    ("attention_resunet_attention", "section 4.3"): (13.0, 3.5),
    ("attention_resunet_fusion", "section 4.3"): (12.7, 3.4),
    ("attention_resunet", "section 4.3"): (13.1, 3.6),
}

SLICES = {  # Dice, mean IoU, accuracy
    "attention_unet2d_t1c": (64.71, 37.91, 98.64),
    "attention_unet2d_flair": (78.30, 44.31, 99.15),
    "attention_unet2d_t2": (71.63, 38.73, 98.91),
    "aspp_attention_unet_t1c": (68.76, 41.13, 98.74),
    "aspp_attention_unet_flair": (79.75, 45.83, 99.17),
    "aspp_attention_unet_t2": (75.46, 42.49, 99.04),
}


def found(paper, table, metric, recipe=None):
    wanted = [n for n in NUMBERS if (n.paper, n.table, n.metric) == (paper, table, metric)]
    return wanted if recipe is None else [n for n in wanted if n.recipe == recipe]


def test_the_file_has_these_columns_and_nothing_missing_odd_or_twice():
    text = files("gliomap.recipes").joinpath("published.csv").read_text("utf-8")
    header, *rows = csv.reader(text.splitlines(), strict=True)
    assert header == [field.name for field in fields(Published)]
    assert all(len(row) == len(header) for row in rows)
    assert all(cell == cell.strip() for row in rows for cell in row)
    assert len(rows) == len(NUMBERS)
    printed = [(n.paper, n.table, n.row, n.dataset, n.region, n.metric) for n in NUMBERS]
    assert len(set(printed)) == len(printed)
    assert [n.paper for n in NUMBERS] == sorted(n.paper for n in NUMBERS)


@pytest.mark.parametrize("line", SCORES.strip().splitlines(), ids=lambda line: " ".join(line.split()[:4]))
def test_scores_of_the_papers_own_rows(line):
    paper, table, recipe, metric, *rest = line.split()
    wanted = dict(zip(rest[::2], map(float, rest[1::2]), strict=True))
    assert {n.region: n.value for n in found(paper, table.replace("_", " "), metric, recipe)} == wanted


def test_every_score_of_the_papers_own_rows_is_copied_twice():
    lines = [line.split() for line in SCORES.strip().splitlines()]
    copied = {(paper, table.replace("_", " "), recipe, metric) for paper, table, recipe, metric, *_ in lines}
    own = {(n.paper, n.table, n.recipe, n.metric) for n in NUMBERS if n.recipe and n.region}
    assert own - copied == {
        ("004", "commentary 5", "attention_resunet", "dice"),
        ("004", "commentary 5", "attention_resunet_attention", "dice"),
    }
    assert copied <= own


@pytest.mark.parametrize(("paper", "table"), [("000", "3"), ("002", "2")])
def test_scores_of_others(paper, table):
    rows = defaultdict(list)
    for n in NUMBERS:
        if (n.paper, n.table, n.recipe) == (paper, table, ""):
            rows[n.row].append(n.value)
    wanted = [text.strip() for text in OTHERS[paper].split(";")]
    assert len(rows) == len(wanted)
    for (row, values), text in zip(rows.items(), wanted, strict=True):
        name = text.rstrip("0123456789. ")
        assert row.startswith(name)
        assert values == [float(v) for v in text[len(name) :].split()]


def test_scores_that_paper_001_quotes():
    quoted = defaultdict(list)
    for n in NUMBERS:
        if n.paper == "001" and n.how == "quoted":
            quoted[n.table, n.row].append(n.value)
    assert [len([1 for table, _ in quoted if table == t]) for t in "123"] == [19, 6, 6]
    assert quoted["1", "TransBTS [25]"] == [0.89, 0.8136, 0.785, 6.469, 10.468, 16.716]  # WT TC ET
    assert quoted["1", "dResU-Net [38]"] == [0.866, 0.8357, 0.8004]  # no distances printed
    assert quoted["1", "MM-UNet [40]"] == [0.85, 0.765, 0.762, 8.243, 10.766, 6.389]
    assert quoted["2", "Attention-aware fusion [44]"] == [0.861, 0.871, 0.789, 6.2, 5.2, 3.1]
    assert quoted["3", "Swinbts [28]"] == [0.8975, 0.7928, 0.7443]
    percent = {n.row[-5:] for n in NUMBERS if n.paper == "001" and n.unit == "%"}
    assert percent == {" [34]", " [35]", " [37]", " [39]"}


@pytest.mark.parametrize(("recipe", "table"), SIZES)
def test_sizes(recipe, table):
    sizes = {n.metric: n.value for n in NUMBERS if (n.recipe, n.table) == (recipe, table) and n.how == "counted"}
    assert (sizes["gflops"], sizes["parameters_m"]) == SIZES[recipe, table]


def test_scores_of_slices():
    for recipe, values in SLICES.items():
        assert tuple(n.value for n in NUMBERS if (n.recipe, n.table) == (recipe, "1")) == values
    lost = {(n.recipe, n.metric): n.value for n in NUMBERS if n.paper == "003" and n.table == "1"}
    assert len(lost) == 3 * len(SLICES) + 1
    assert lost["unet2d_t2", "miou"] == 38.59


def test_scores_of_slices_are_what_the_docs_say_of_them():
    """The mean IoU is below the least one that the Dice allows; accuracy and Dice imply 2 % of tumour pixels."""
    for percents in SLICES.values():
        dice, miou, accuracy = (p / 100 for p in percents)
        assert 0.68 < miou / (dice / (2 - dice)) < 0.80
        assert (1 - accuracy) / (2 * (1 - dice)) == pytest.approx(0.02, abs=0.001)


def test_times_are_seconds():
    times = {(n.recipe, n.metric): n.value for n in NUMBERS if n.paper == "003" and n.how == "timed"}
    assert times["unet2d_t1c", "training_time_s"] == pytest.approx(141 * 60 + 15.6)
    assert times["aspp_attention_unet_t1c", "training_time_s"] == pytest.approx(45 * 60 + 35.1)
    assert times["spp_attention_unet_flair", "training_time_s"] == pytest.approx(79 * 60 + 11.2)
    assert times["attention_unet2d_flair", "inference_time_s"] == 14.3
    assert len(times) == 24
    assert {n.unit for n in NUMBERS if n.metric.endswith("_s")} == {"s"}


def test_words_are_known():
    assert {n.paper for n in NUMBERS} == {"000", "001", "002", "003", "004"}
    assert {n.how for n in NUMBERS} == set(get_args(How))
    assert {n.region for n in NUMBERS} == {"ET", "TC", "WT", ""}
    units = defaultdict(set)
    for n in NUMBERS:
        units[n.metric].add(n.unit)
    assert units == {
        "dice": {"", "%"},
        "dice_sd": {"%"},
        "miou": {"%"},
        "accuracy": {"%"},
        "hd95": {"mm"},
        "hd100": {"mm"},
        "hd100_sd": {"mm"},
        "parameters_m": {"M"},
        "gflops": {"G"},
        "training_time_s": {"s"},
        "inference_time_s": {"s"},
    }


def test_numbers_are_in_their_ranges():
    for n in NUMBERS:
        if n.metric in ("dice", "miou", "accuracy"):
            assert (1 if n.unit == "%" else 0) < n.value < (100 if n.unit == "%" else 1), n
        else:
            assert n.value > 0, n


def test_how_scores_came_about():
    assert {n.paper for n in NUMBERS if n.how == "official server"} == {"002"}
    assert {n.paper for n in NUMBERS if n.how == "cross-validation"} == {"002"}
    assert {n.paper for n in NUMBERS if n.how == "quoted"} == {"000", "001"}
    assert not [n for n in NUMBERS if n.how == "quoted" and n.recipe]
    assert all((n.how == "counted") == (n.metric in ("parameters_m", "gflops")) for n in NUMBERS)
    assert all((n.how == "timed") == n.metric.endswith("time_s") for n in NUMBERS)
    assert all(bool(n.dataset) == (n.how != "counted") for n in NUMBERS)


def test_what_contradicts_itself_says_so():
    twice = defaultdict(set)
    for n in NUMBERS:
        if n.recipe and n.region and n.how == "hold-out":
            twice[n.paper, n.recipe, n.dataset, n.region, n.metric].add(n)
    for key, numbers in twice.items():
        values = sorted(n.value for n in numbers)
        if values[-1] - values[0] > 6e-5:  # more than rounding to four digits
            assert all(n.note for n in numbers), key


def test_every_recipe_named_exists():
    assert {n.recipe for n in NUMBERS} - {""} - set(RECIPES) == set()
