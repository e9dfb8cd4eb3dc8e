"""The page, the tables and the text that `gliomap reproduce` leaves: published beside measured, and a verdict per claim."""

import math
from dataclasses import dataclass, field
from typing import Literal

from gliomap.recipes.claims import Claim
from gliomap.recipes.published import Published
from gliomap.recipes.tables import Table
from gliomap.report.templating import pages
from gliomap.rows import table_csv
from gliomap.statistics import ALPHA, PairedComparison

Judgement = Literal["supported", "not supported", "undecided", "not tested"]

COLUMNS = (
    "row",
    "number",
    "unit",
    "published",
    "measured",
    "95 % interval",
    "difference",
    "studies",
    "missing",
    "patches",
)
"""What tables show of a line in few words; the definition and a remark come after them, see `cells`."""
_DECIMALS = {"%": 2, "": 4, "mm": 2, "M": 4, "G": 4, "s": 1}


@dataclass(frozen=True)
class Line:
    """A published number and what was measured of it, in the published unit; NaN where nothing was.

    ``low`` and ``high`` are the 95 % interval of what was measured. ``trained`` of the recipe's ``budget`` patches were seen,
    both None where nothing was trained. ``remark``: why it was not measured, or what keeps it from being comparable.
    ``beside``: how this is measured where it is not the number's first definition.
    """

    number: Published
    remark: str
    definition: str = ""
    measured: float = math.nan
    low: float = math.nan
    high: float = math.nan
    studies: int = 0
    missing: int = 0
    trained: int | None = None
    budget: int | None = None
    beside: str = ""

    @property
    def difference(self) -> float:
        """Measured minus published."""
        return self.measured - self.number.value


@dataclass(frozen=True)
class Judged:
    """A claim and what these studies say of it: ``comparison`` is in the published unit, None where nothing was compared.

    ``reason`` is the verdict's in words where there is no comparison. ``tested``: how many claims p was adjusted for.
    ``reachable``: whether any scores of so many studies could have given an adjusted p below `ALPHA`.
    ``share``: of the recipes' patches, what the less trained of both rows saw; None where nothing was trained.
    """

    claim: Claim
    verdict: Judgement
    comparison: PairedComparison | None = None
    reason: str = ""
    tested: int = 0
    reachable: bool = True
    share: float | None = None

    @property
    def gain(self) -> tuple[float, float, float]:
        """By how much the better row is better here, and the interval of that: positive is better, whatever the metric."""
        found = self.comparison
        if found is None:
            return math.nan, math.nan, math.nan
        if self.claim.higher_is_better:
            return found.difference, found.low, found.high
        return -found.difference, -found.high, -found.low


@dataclass(frozen=True)
class Reproduction:
    """All that is shown: ``statement`` is what to know before any number, ``facts`` how it was made."""

    table: Table
    statement: tuple[str, ...]
    lines: tuple[Line, ...]
    judged: tuple[Judged, ...]
    facts: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def number_text(value: float, unit: str, form: str = "") -> str:
    """A number with the decimals of its unit, empty for NaN; ``form`` + shows the sign."""
    return "" if math.isnan(value) else format(value, f"{form}.{_DECIMALS.get(unit, 3)}f")


def interval_text(low: float, high: float, unit: str) -> str:
    """An interval in words, empty where there is none."""
    return "" if math.isnan(low) else f"{number_text(low, unit)} to {number_text(high, unit)}"


def budget_text(line: Line) -> str:
    """Patches seen of the recipe's own number; empty where nothing was trained."""
    return "" if line.trained is None or line.budget is None else f"{line.trained:,} of {line.budget:,}"


def share_text(share: float) -> str:
    """A share in percent with three digits."""
    return f"{100 * share:.3g} %"


def where_text(region: str, metric: str) -> str:
    """A region and a published metric as one name."""
    return f"{region} {metric}".strip()


def sentence(judged: Judged) -> str:
    """What these studies say of a claim, with the interval and what so many studies can show."""
    claim, found = judged.claim, judged.comparison
    doubt = f" ({claim.doubt})" if claim.doubt else ""
    head = f"{claim.text}, {where_text(claim.region, claim.metric)}: {judged.verdict}"
    if found is None:
        return f"{head}; {judged.reason}{doubt}."
    if found.studies < 2:
        count = found.studies + found.missing
        return f"{head}; {found.studies} of {count} studies have both scores, which is no comparison{doubt}."
    size = " at this sample size" if judged.verdict == "undecided" else " in this run"
    trained = "" if judged.share is None or judged.share >= 1 else f", after {share_text(judged.share)} of the training"
    gain, low, high, printed = (gain_text(value) for value in (*judged.gain, claim.published_gain))
    missing = f", {found.missing} missing" if found.missing else ""
    return (
        f"{head}{size}{trained}{doubt}. Gain {gain} {claim.numbers[0].unit}".rstrip()
        + f" (95 % interval {low} to {high}; {found.studies} studies{missing}; p {found.p_holm:.2g} after Holm for "
        f"{judged.tested} claims), in print {printed}. {_power(judged, found)}"
    )


def gain_text(value: float) -> str:
    """A gain with its sign and three digits, empty for NaN; a zero has a plus."""
    return "" if math.isnan(value) else f"{value + 0.0:+.3g}"


def _power(judged: Judged, found: PairedComparison) -> str:
    """What the sample could have shown at all."""
    if not judged.reachable:
        return f"With {found.studies} studies no difference, however large, can reach p {ALPHA} after {judged.tested} claims."
    return f"{found.studies} studies can show a gain of about {found.detectable:.2g} (80 % power, before Holm)."


def line_rows(reproduction: Reproduction) -> list[dict[str, str | float | None]]:
    """A row per published number and definition, with six significant digits of what was measured, None where nothing was."""
    return [
        {
            "table": reproduction.table.address,
            "row": line.number.row,
            "recipe": line.number.recipe,
            "dataset": line.number.dataset,
            "region": line.number.region,
            "metric": line.number.metric,
            "unit": line.number.unit,
            "how": line.number.how,
            "published": line.number.value,
            "measured": _value(line.measured),
            "low": _value(line.low),
            "high": _value(line.high),
            "measured_minus_published": _value(line.difference),
            "definition": line.definition,
            "studies": line.studies,
            "missing": line.missing,
            "patches_trained": line.trained,
            "patches_of_recipe": line.budget,
            "remark": line.remark,
            "note": line.number.note,
        }
        for line in reproduction.lines
    ]


def claim_rows(reproduction: Reproduction) -> list[dict[str, str | float | None]]:
    """A row per claim, alike."""
    return [_claim_row(judged) for judged in reproduction.judged]


def lines_csv(reproduction: Reproduction) -> bytes:
    """`line_rows` as a table."""
    rows = line_rows(reproduction)
    return table_csv(rows, list(rows[0]))


def claims_csv(reproduction: Reproduction) -> bytes:
    """`claim_rows` as a table."""
    return table_csv(claim_rows(reproduction), CLAIM_COLUMNS)


CLAIM_COLUMNS = (
    *("claim", "better", "worse", "region", "metric", "unit", "verdict", "published_gain", "gain", "low", "high"),
    *("studies", "missing", "p", "p_holm", "detectable", "smallest_p", "sentence"),
)


def _claim_row(judged: Judged) -> dict[str, str | float | None]:
    claim, found = judged.claim, judged.comparison
    gain, low, high = judged.gain
    row: dict[str, str | float | None] = {
        "claim": claim.text,
        "better": claim.better,
        "worse": claim.worse,
        "region": claim.region,
        "metric": claim.metric,
        "unit": claim.numbers[0].unit,
        "verdict": judged.verdict,
        "published_gain": _value(claim.published_gain),
        "gain": _value(gain),
        "low": _value(low),
        "high": _value(high),
        "sentence": sentence(judged),
    }
    if found is not None:
        row |= {"studies": found.studies, "missing": found.missing}
        row |= {name: _value(getattr(found, name)) for name in ("p", "p_holm", "detectable", "smallest_p")}
    return row


def markdown(reproduction: Reproduction) -> str:
    """The tables and the sentences as Markdown."""
    table = reproduction.table
    out = [f"# {table.address}: {table.title}", "", *(f"**{text}**" for text in reproduction.statement), ""]
    out += [f"- warning: {text}" for text in reproduction.warnings]
    header = (*COLUMNS, "definition", "remark")
    out += ["", "## Published and measured", "", _md_row(header), _md_row(["---"] * len(header))]
    out += [_md_row(cells(line)) for line in reproduction.lines]
    if reproduction.judged:
        out += ["", "## The paper's claims", "", *(f"- {sentence(judged)}" for judged in reproduction.judged)]
    out += ["", "## How it was made", "", *(f"- {name}: {value}" for name, value in reproduction.facts.items())]
    return "\n".join(out) + "\n"


def cells(line: Line) -> tuple[str, ...]:
    """What tables show of a line."""
    number, unit = line.number, line.number.unit
    return (
        _named(number),
        f"{where_text(number.region, number.metric)} {line.beside}".strip(),
        unit,
        f"{number.value:g}",
        number_text(line.measured, unit),
        interval_text(line.low, line.high, unit),
        number_text(line.difference, unit, "+"),
        str(line.studies or ""),
        str(line.missing or ""),
        budget_text(line),
        line.definition,
        line.remark,
    )


CLAIM_HEADERS = (
    "claim",
    "number",
    "verdict",
    "unit",
    "in print",
    "here",
    "95 % interval",
    "p (Holm)",
    "studies",
    "missing",
)


def claim_cells(judged: Judged) -> tuple[str, ...]:
    """What tables show of a claim: its gain in print and here."""
    claim, found = judged.claim, judged.comparison
    gain, low, high = (gain_text(value) for value in judged.gain)
    known = found is not None and not math.isnan(found.p_holm)
    return (
        claim.text,
        where_text(claim.region, claim.metric),
        judged.verdict,
        claim.numbers[0].unit,
        gain_text(claim.published_gain),
        gain,
        f"{low} to {high}" if low else "",
        f"{found.p_holm:.2g}" if found is not None and known else "",
        str(found.studies) if found is not None else "",
        str(found.missing or "") if found is not None else "",
    )


def page(reproduction: Reproduction) -> str:
    """The page as HTML text, one file that opens offline; every value in it is escaped."""
    environment = pages()
    environment.globals |= {"cells": cells, "sentence": sentence}
    return environment.get_template("reproduction.html.j2").render(report=reproduction)


def _named(number: Published) -> str:
    """A row as printed, with its modality in paper 003."""
    return f"{number.row}, {number.dataset.rpartition(', ')[2]}" if number.paper == "003" else number.row


def _md_row(texts: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _value(value: float) -> float | None:
    """With six significant digits; None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(f"{value:.6g}")
