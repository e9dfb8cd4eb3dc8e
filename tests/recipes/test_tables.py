import pytest

from gliomap.errors import UsageError
from gliomap.recipes import RECIPES
from gliomap.recipes.published import published
from gliomap.recipes.tables import SCORED, TABLES, address, can_be_measured, find_table

ADDRESSES = {
    *(
        "000/table1",
        "000/table2",
        "000/table3",
        "001/table1",
        "001/table2",
        "001/table3",
        "001/table4",
        "001/section5.2",
    ),
    *("002/table2", "002/table3", "002/table4", "002/table5", "002/section4.3", "003/table1", "003/table2"),
    *("004/section4.2", "004/section4.3", "004/section3.3", "004/section5", "004/commentary5"),
}


def test_every_published_number_is_in_one_table_and_every_table_has_an_address():
    assert set(TABLES) == ADDRESSES
    numbers = [number for table in TABLES.values() for number in table.numbers]
    assert len(numbers) == len(published())
    assert set(numbers) == set(published())
    assert all(address(n.paper, n.table) == place for place, table in TABLES.items() for n in table.numbers)
    assert all(table.title for table in TABLES.values())


def test_what_can_be_run_has_a_recipe_and_no_stopwatch():
    for number in published():
        assert can_be_measured(number) == (bool(number.recipe) and number.how not in ("timed", "quoted"))
        assert not number.recipe or number.recipe in RECIPES
    assert set(SCORED) == {n.how for n in published()} - {"quoted", "timed", "counted"}


@pytest.mark.parametrize(
    ("place", "rows", "runnable"),
    [("002/table4", 8, 8), ("000/table3", 4, 1), ("001/table1", 21, 2), ("003/table1", 7, 7), ("003/table2", 12, 0)],
)
def test_rows_are_counted_as_printed(place, rows, runnable):
    table = find_table(place)
    assert (len(table.rows), len(table.runnable)) == (rows, runnable)


def test_how_numbers_came_about_is_told_once_each():
    assert find_table("004/section4.3").how == ("hold-out", "counted")


def test_an_unknown_address_is_refused_with_near_ones():
    with pytest.raises(UsageError, match=r"no table is called '002/tabel4'; near it are 002/table4"):
        find_table("002/tabel4")
    with pytest.raises(UsageError, match=r"near it are 003/table1, 003/table2"):
        find_table("003")
    with pytest.raises(UsageError, match="--list prints all"):
        find_table("")
