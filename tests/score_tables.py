"""Tables of scores made up for tests of what reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from gliomap.rows import Row, Status, failed_row, metric, rows_csv

Column = tuple[str, str]
Values = Mapping[str, Mapping[Column, Sequence[float | None]]]


def made_rows(values: Values, *, first: int = 0, protocol: str = "plain", status: Status = "ok") -> list[Row]:
    """A row per model, column and value, of the studies s00, s01 and so on; None has no value."""
    return [
        Row(f"s{first + i:02d}", model, region, name, v, metric(name).unit, metric(name).definition, protocol,
            status if v is not None else "prediction_empty")
        for model, columns in values.items()
        for (region, name), scores in columns.items()
        for i, v in enumerate(scores)
    ]  # fmt: skip


def write_table(path: Path, rows: Sequence[Row], failed: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write rows, with a row for each study that failed by model."""
    more = [failed_row(study, model) for model, studies in (failed or {}).items() for study in studies]
    path.write_bytes(rows_csv([*rows, *more]))
    return path
