import json

from typer.testing import CliRunner

from gliomap.cli import app
from gliomap.recipes.tables import TABLES

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, ["reproduce", *map(str, arguments)])


def test_the_list_has_every_table_with_what_gliomap_can_run():
    shown = run("--list").stdout
    for address, table in TABLES.items():
        line = next(text for text in shown.splitlines() if text.startswith(f"{address} "))
        assert table.title in line
        assert line.split()[1:3] == [str(len(table.rows)), str(len(table.runnable))]
        assert ", ".join(table.how) in line
    listed = json.loads(run("--list", "--json").stdout)
    assert [one["table"] for one in listed] == list(TABLES)
    assert [one["runnable"] for one in listed] == [len(table.runnable) for table in TABLES.values()]


def test_a_counted_table_is_printed_with_its_claims_and_its_page(tmp_path):
    result = run("002/section4.3", "-o", tmp_path)
    assert result.exit_code == 0
    for words in (
        "Sizes are counted; nothing was trained.",
        "4.7686",
        "151.1176",
        "CGA U-Net costs less than nnU-Net",
        "supported",
    ):
        assert words in result.stdout
    assert str(tmp_path / "reproduction.html") in result.stdout
    found = json.loads(run("002/section4.3", "-o", tmp_path, "--json").stdout)
    assert {line["recipe"] for line in found["numbers"]} == {"cga_unet", "cga_unet_dynunet"}
    assert [claim["verdict"] for claim in found["claims"]] == ["supported", "supported"]
    assert run("002/section4.3", "-o", tmp_path, "--quiet").stdout == ""


def test_rows_are_separated_by_commas(tmp_path):
    found = json.loads(run("002/section4.3", "-o", tmp_path, "--json", "--rows", "nnu-net").stdout)
    assert {line["row"] for line in found["numbers"]} == {"nnU-Net"}
    assert found["claims"] == []


def test_a_table_and_a_place_are_needed(tmp_path):
    for arguments in ((), ("002/table4",), ("-o", tmp_path)):
        assert "--list prints the tables" in str(run(*arguments).exception)
    assert "give DATA" in str(run("002/table4", "-o", tmp_path).exception)
