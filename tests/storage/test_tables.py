"""Tables grow by rows, and begin with the names of their columns."""

from pathlib import Path

from isvit_lightning.storage.tables import Table


def test_rows_come_behind_each_other_under_one_heading(tmp_path: Path) -> None:
    table = Table(tmp_path / "logs" / "some.csv", ("name", "value"))
    table.add([("a", 1.5)])
    table.add([("b, c", 2), ("d", None)])
    assert table.path.read_text() == 'name,value\na,1.5\n"b, c",2\nd,\n'


def test_a_table_that_begins_forgets_its_rows(tmp_path: Path) -> None:
    table = Table(tmp_path / "some.csv", ("value",))
    table.add([(1,)])
    table.begin()
    assert table.path.read_text() == "value\n"
