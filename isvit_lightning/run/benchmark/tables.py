"""Figures as cells of tables, and tables as Markdown and on a console."""

from collections.abc import Sequence

from rich.table import Table

from isvit_lightning.run.benchmark.forms import Absent, Form
from isvit_lightning.run.benchmark.parity import Parity
from isvit_lightning.run.benchmark.timing import Speed

Row = dict[str, str]
"""Cells by the title of their column."""
_REMARK = "remark"
_TEXTS = ("engine", "form", _REMARK)
_DIGITS = {"kl": 4}


def speed_rows(speeds: Sequence[Speed], absent: Sequence[Absent]) -> list[Row]:
    """Cells of the table of speed.

    Args:
        speeds: what was timed.
        absent: forms that there are not.
    """
    missing = [Speed(form.engine, form.name, 0, 0, reason=form.reason) for form in absent]
    return _without_empty([_speed_row(row) for row in (*speeds, *missing)])


def form_rows(forms: Sequence[Form], parities: Sequence[Parity], columns: Sequence[tuple[str, str]]) -> list[Row]:
    """Cells of the table of sizes and accuracy.

    Args:
        forms: those that there are.
        parities: what was measured of them.
        columns: metrics of the task, each with its title.
    """
    found = {(row.engine, row.form): row for row in parities}
    rows = []
    for form in forms:
        row = found.get((form.engine, form.name), Parity(form.engine, form.name))
        metrics = {title: _number(row.metrics.get(key), _DIGITS.get(key, 2)) for key, title in columns}
        rows.append(
            {
                "engine": form.engine,
                "form": form.name,
                "file, MB": _megabytes(form.file_bytes),
                "memory, MB": _megabytes(form.resident_bytes),
                **metrics,
                "same class %": _number(row.metrics.get("same"), 2),
                _REMARK: row.reason or "",
            }
        )
    return _without_empty(rows)


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of rows with the same columns.

    Args:
        rows: at least one.
    """
    marks = ["---" if title in _TEXTS else "---:" for title in rows[0]]
    lines = [rows[0].keys(), marks, *(row.values() for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def on_console(title: str, rows: Sequence[Row]) -> Table:
    """A table of rows with the same columns.

    Args:
        title: above it.
        rows: at least one.
    """
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column in _TEXTS else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


def _speed_row(row: Speed) -> Row:
    low, high = row.quartiles or (None, None)
    return {
        "engine": row.engine,
        "form": row.form,
        "threads": str(row.threads or ""),
        "images": str(row.batch or ""),
        "ms": _number(row.milliseconds, 2),
        "quartiles": "" if row.quartiles is None else f"{_number(low, 2)} to {_number(high, 2)}",
        "images/s": _number(row.images_per_second, 1),
        "to float": _number(row.ratio, 2),
        "first, s": _number(row.first_seconds, 1),
        _REMARK: row.reason or "",
    }


def _without_empty(rows: Sequence[Row]) -> list[Row]:
    """``rows`` without the columns that none of them fills."""
    filled = {title for row in rows for title, cell in row.items() if cell}
    return [{title: cell for title, cell in row.items() if title in filled} for row in rows]


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def _megabytes(size: int | None) -> str:
    return _number(None if size is None else size / 1e6, 2)
