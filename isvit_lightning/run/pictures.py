"""Pictures of a comparison: what recipes reach at each width, and for how much time."""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from isvit_lightning.run.comparison import Comparison, spread
from isvit_lightning.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Those of Okabe and Ito that can be told apart without red or green, and are seen on white."""
_MARKERS = "os^DvPX<>ph*d"
"""13, with 7 colors: of 91 recipes, no two look the same, and those of one color have markers unlike each other."""
_LINES = ("-", "--", ":", "-.")
_FILLS = ("full", "none", "left", "bottom", "right", "top")
"""How markers of a width are filled."""
_COSTS = (("float_block_steps", "float block steps"), ("seconds", "seconds"))
_LEAST = {"kl": 1e-6, "seconds": 0.01, "float_block_steps": 0.5}
"""What stands for zero on a logarithmic axis: half or all of what a figure is rounded to."""
_STYLE: Final[Any] = {
    "svg.hashsalt": "isvit",  # names of parts of an SVG are random without it
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class _Mark:
    """How a recipe is drawn; ``place`` is its number among all ``count``."""

    place: int
    count: int

    @property
    def look(self) -> dict[str, Any]:
        """Color and marker."""
        return {"color": _COLORS[self.place % len(_COLORS)], "marker": _MARKERS[self.place % len(_MARKERS)]}

    @property
    def line(self) -> Any:
        """Style of its line."""
        return _LINES[self.place // len(_COLORS) % len(_LINES)]

    @property
    def aside(self) -> float:
        """How far it stands beside the middle of a width, so that equal figures do not hide each other."""
        return 0.5 * ((self.place + 0.5) / self.count - 0.5)


@dataclass(frozen=True)
class _Drawing:
    """What is drawn of a comparison.

    Args:
        table: the comparison.
        cells: those that were measured, by recipe and width; at least one.
        metrics: what is measured, each with its title.
        widths: in ascending order.
        marks: by recipe.
    """

    table: Comparison
    cells: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]
    metrics: Sequence[tuple[str, str]]
    widths: Sequence[str]
    marks: Mapping[str, _Mark]

    @property
    def title(self) -> str:
        """Network, images and seeds."""
        seeds = max(len(cells) for widths in self.cells.values() for cells in widths.values())
        several = f", mean and standard deviation of {seeds} seeds" if seeds > 1 else ""
        return f"{self.table.network}\n{self.table.images} evaluation images{several}"


def draw(table: Comparison, directory: Path) -> None:
    """Write ``comparison_bits`` and ``comparison_cost``, each as PNG and SVG; a log line where matplotlib is missing.

    Args:
        table: the comparison; recipes that failed are left out.
        directory: folder to write to.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        _LOG.info(
            "no pictures are drawn: install matplotlib with pip install 'isvit-lightning[plot]' and give the same "
            "command again, which measures nothing anew"
        )
        return
    drawing = _drawing(table)
    if drawing is None:
        return
    with mpl.rc_context(_STYLE):
        for name, figure in (("bits", _by_bits(drawing)), ("cost", _by_cost(drawing))):
            for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
                content = io.BytesIO()
                figure.savefig(content, format=form, dpi=150, metadata=metadata)
                write_atomically(directory / f"comparison_{name}.{form}", content.getvalue())


def _drawing(table: Comparison) -> _Drawing | None:
    """What can be drawn; None where nothing was measured."""
    cells: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for title, measured in table.rows.items():
        name, width = title.rsplit(" ", 1)
        good = [cell for cell in measured if "failed" not in cell]
        if good:
            cells.setdefault(name, {})[width] = good
    every = [cell for widths in cells.values() for good in widths.values() for cell in good]
    known = [(key, title) for key, title in table.columns if any(key in cell for cell in every)]
    metrics = [column for column in known if column[0] != "kl"][:1] + [column for column in known if column[0] == "kl"]
    if not metrics:
        return None
    # Widths are of one digit, so that the order of their names is theirs.
    widths = sorted({width for some in cells.values() for width in some})
    marks = {name: _Mark(place, len(cells)) for place, name in enumerate(cells)}
    return _Drawing(table, cells, metrics, widths, marks)


def _by_bits(drawing: _Drawing) -> "Figure":
    """A line for each recipe over the widths."""
    figure, rows = _panels(drawing, rows=1, columns=len(drawing.metrics))
    for panel, (key, title) in zip(rows[0], drawing.metrics, strict=True):
        for name, mark in drawing.marks.items():
            own = [(place, width) for place, width in enumerate(drawing.widths) if width in drawing.cells[name]]
            figures = [_point(key, drawing.cells[name][width]) for _, width in own]
            points = [(place + mark.aside, *point) for (place, _), point in zip(own, figures, strict=True) if point]
            if points:
                x, y, low, high = zip(*points, strict=True)
                panel.errorbar(x, y, [low, high], linestyle=mark.line, capsize=2, elinewidth=0.9, **mark.look)
        panel.set_xticks(range(len(drawing.widths)), [width.upper() for width in drawing.widths])
        panel.set_xlim(-0.5, len(drawing.widths) - 0.5)
        panel.grid(visible=False, axis="x")
        panel.set_xlabel("bits of weights and activations")
        _finish(panel, drawing, key, title)
    _legend(figure, drawing, lines=True)
    return figure


def _by_cost(drawing: _Drawing) -> "Figure":
    """A point for each recipe and width over what it costs."""
    figure, rows = _panels(drawing, rows=len(drawing.metrics), columns=len(_COSTS))
    for panels, (key, title) in zip(rows, drawing.metrics, strict=True):
        for panel, (cost, cost_title) in zip(panels, _COSTS, strict=True):
            for name, widths in drawing.cells.items():
                for width, cells in widths.items():
                    x, y = _point(cost, cells), _point(key, cells)
                    if x and y:
                        fill = _FILLS[drawing.widths.index(width) % len(_FILLS)]
                        panel.errorbar(
                            x[0],
                            y[0],
                            [[y[1]], [y[2]]],
                            [[x[1]], [x[2]]],
                            linestyle="",
                            fillstyle=fill,
                            elinewidth=0.7,
                            **drawing.marks[name].look,
                        )
            panel.set_xscale("log")
            _plain_ticks(panel.xaxis)
            panel.set_xlabel(cost_title)
            _finish(panel, drawing, key, title)
    _legend(figure, drawing, lines=False)
    return figure


def _panels(drawing: _Drawing, rows: int, columns: int) -> tuple["Figure", Sequence[Sequence["Axes"]]]:
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    # Not pyplot, which keeps figures and may open a window.
    figure = Figure(figsize=(4.2 * columns + 2.0, max(3.4 * rows, 1.2 + 0.19 * len(drawing.marks)) + 0.6))
    figure.set_layout_engine("constrained")
    figure.suptitle(drawing.title, fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _finish(panel: "Axes", drawing: _Drawing, key: str, title: str) -> None:
    """Title of the vertical axis, its scale, and the float network."""
    panel.set_ylabel(title)
    if key == "kl":
        panel.set_yscale("log")
        _plain_ticks(panel.yaxis)
    if key in drawing.table.float_row:
        panel.axhline(drawing.table.float_row[key], color="#777777", linewidth=1, linestyle=(0, (1, 1.5)))


def _plain_ticks(axis: Any) -> None:
    """Numbers such as 0.5 and 200 on a logarithmic axis, also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: PLC0415 - an extra

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(figure: "Figure", drawing: _Drawing, lines: bool) -> None:
    """Beside the panels: recipes, the float network, and widths where markers tell them."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 - an extra

    entries = [
        Line2D([], [], linestyle=mark.line if lines else "", label=name, **mark.look)
        for name, mark in drawing.marks.items()
    ]
    if any(key in drawing.table.float_row for key, _ in drawing.metrics):
        entries.append(Line2D([], [], color="#777777", linewidth=1, linestyle=(0, (1, 1.5)), label="float"))
    if not lines and len(drawing.widths) > 1:
        for place, width in enumerate(drawing.widths):
            look: dict[str, Any] = {"marker": "o", "color": "#777777", "fillstyle": _FILLS[place % len(_FILLS)]}
            entries.append(Line2D([], [], linestyle="", label=width.upper(), **look))
    figure.legend(handles=entries, loc="outside right upper", frameon=False)


def _point(key: str, cells: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """Mean, and how far the spread reaches below and above it; None where there is no number."""
    found = spread(key, cells)
    if found is None or not math.isfinite(found[0]):
        return None
    mean, deviation = max(found[0], _LEAST.get(key, -math.inf)), found[1] or 0.0
    # A bar that ended at zero would be endless on a logarithmic axis.
    below = min(deviation, 0.9 * mean) if key in _LEAST else deviation
    return mean, below, deviation
