"""Tables of scores made up for tests of what reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gliomap.rows import Row, Status, failed_row, metric, rows_csv

Column = tuple[str, str]
Values = Mapping[str, Mapping[Column, Sequence[float | None]]]


COLUMNS = (("ET", "dice"), ("WT", "dice"), ("ET", "hd95"), ("WT", "hd95"))


def random_values(models=("a", "b", "c"), studies=12, columns=COLUMNS, seed=0):
    """Values for `made_rows`: each model a little better than the one before, on studies that are hard for all alike."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=studies)
    return {
        model: {
            column: np.round(
                (0.7 + 0.02 * k - 0.1 * hard + rng.normal(0, 0.05, studies)) * (1 if column[1] == "dice" else 10), 5
            ).tolist()
            for column in columns
        }
        for k, model in enumerate(models)
    }


def made_rows(
    values: Values,
    *,
    first: int = 0,
    protocol: str = "plain",
    status: Status = "ok",
    missing: Status = "prediction_empty",
) -> list[Row]:
    """A row per model, column and value, of the studies s00, s01 and so on; None has no value, for the reason ``missing``."""
    return [
        Row(f"s{first + i:02d}", model, region, name, v, metric(name).unit, metric(name).definition, protocol,
            status if v is not None else missing)
        for model, columns in values.items()
        for (region, name), scores in columns.items()
        for i, v in enumerate(scores)
    ]  # fmt: skip


def write_table(path: Path, rows: Sequence[Row], failed: Mapping[str, Sequence[str]] | None = None) -> Path:
    """Write rows, with a row for each study that failed by model."""
    more = [failed_row(study, model) for model, studies in (failed or {}).items() for study in studies]
    path.write_bytes(rows_csv([*rows, *more]))
    return path
