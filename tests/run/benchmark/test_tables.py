"""Cells of the tables."""

from torch import nn

from isvit_lightning.run.benchmark.forms import Absent, Form
from isvit_lightning.run.benchmark.parity import Parity
from isvit_lightning.run.benchmark.tables import form_rows, markdown, on_console, speed_rows
from isvit_lightning.run.benchmark.timing import Speed

SPEEDS = [
    Speed("A", "float", 1, 8, 20.0, (19.0, 21.5), 0.31, 1.0),
    Speed("A", "integer", 1, 8, 8.0, (7.5, 8.25), 12.0, 2.5),
    Speed("A", "broken", 1, 8, reason="It is | broken."),
]


def test_cells_of_speed() -> None:
    first, second, broken, absent = speed_rows(SPEEDS, [Absent("B", "all", "B is not installed.")])
    assert list(second.values()) == ["A", "integer", "1", "8", "8.00", "7.50 to 8.25", "1000.0", "2.50", "12.0", ""]
    assert first["to float"] == "1.00"
    assert (broken["ms"], broken["remark"]) == ("", "It is | broken.")
    assert (absent["engine"], absent["form"], absent["threads"], absent["remark"]) == (
        "B",
        "all",
        "",
        "B is not installed.",
    )


def test_columns_that_nobody_fills_are_left_out() -> None:
    assert "remark" not in speed_rows(SPEEDS[:2], [])[0]


def test_cells_of_forms() -> None:
    forms = [
        Form("A", "float", lambda _: nn.Identity(), file_bytes=4_000_000, resident_bytes=5_500_000),
        Form("A", "integer", lambda _: nn.Identity(), file_bytes=1_000_000),
    ]
    found = [
        Parity("A", "float", {"top1": 90.0, "kl": -1e-9, "same": 99.5}),
        Parity("A", "integer", reason="It is broken."),
    ]
    rows = form_rows(forms, found, [("top1", "top-1 %"), ("top5", "top-5 %"), ("kl", "KL")])
    assert rows[0] == {
        "engine": "A",
        "form": "float",
        "file, MB": "4.00",
        "memory, MB": "5.50",
        "top-1 %": "90.00",
        "KL": "0.0000",
        "same class %": "99.50",
        "remark": "",
    }
    assert [rows[1][title] for title in ("file, MB", "memory, MB", "top-1 %", "remark")] == [
        "1.00",
        "",
        "",
        "It is broken.",
    ]


def test_markdown_has_a_cell_for_each_column() -> None:
    rows = speed_rows(SPEEDS, [])
    lines = markdown(rows).splitlines()
    assert lines[0].startswith("| engine | form | threads | images | ms |")
    assert lines[1].startswith("| --- | --- | ---: |")
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(rows)


def test_a_console_shows_the_same() -> None:
    table = on_console("Speed", speed_rows(SPEEDS, []))
    assert (table.title, table.row_count, len(table.columns)) == ("Speed", 3, 10)
