"""Pictures show the figures of the table, look alike each time, and leave the program as it is."""

import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from isvit_lightning.run import pictures
from isvit_lightning.run.comparison import Comparison
from isvit_lightning.run.pictures import draw

COLUMNS = (("top1", "top-1 %"), ("top5", "top-5 %"), ("agreement", "agreement %"), ("kl", "KL"))
NAMES = [f"comparison_{name}.{form}" for name in ("bits", "cost") for form in ("png", "svg")]
KL = (0.5, 0.25, 0.75)


def row(seed: int, **changes: Any) -> dict[str, Any]:
    measured = {"top1": 80.0 + seed, "top5": 99.0, "agreement": 85.0, "kl": KL[seed]}
    return {"seed": seed, **measured, "seconds": 10.0 * (1 + seed), "float_block_steps": 30, **changes}


def table(rows: dict[str, list[dict[str, Any]]], **options: Any) -> Comparison:
    return Comparison(
        **{"network": "net", "columns": COLUMNS, "images": 20, "float_row": {"top1": 92.5}, **options}, rows=rows
    )


def several(recipes: int = 2, widths: tuple[str, ...] = ("w3a3", "w4a4")) -> Comparison:
    """As many recipes, with three seeds at each width."""
    titles = [f"recipe_{number} {width}" for width in widths for number in range(recipes)]
    return table({title: [row(seed) for seed in range(3)] for title in titles})


def figures(comparison: Comparison) -> tuple[Figure, Figure]:
    """The two figures, laid out."""
    drawing = pictures._drawing(comparison)
    assert drawing is not None
    with mpl.rc_context(pictures._STYLE):
        made = pictures._by_bits(drawing), pictures._by_cost(drawing)
        for figure in made:
            FigureCanvasAgg(figure).draw()
    return made


def points(panel: Any) -> list[tuple[list[float], list[float]]]:
    """Places and figures of each line of a panel."""
    lines = [each.lines[0] for each in panel.containers if isinstance(each, ErrorbarContainer)]
    return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in lines]


def bars(panel: Any, place: int = 0) -> list[list[tuple[float, float]]]:
    """Ends of the error bars of a line, as drawn."""
    return [[tuple(end) for end in bar] for part in panel.containers[place].lines[2] for bar in part.get_segments()]


def test_lines_over_the_bits_are_the_means_of_the_seeds() -> None:
    accuracy, divergence = figures(several())[0].axes
    assert (accuracy.get_ylabel(), divergence.get_ylabel()) == ("top-1 %", "KL")
    assert (accuracy.get_yscale(), divergence.get_yscale()) == ("linear", "log")
    assert [text.get_text() for text in accuracy.get_xticklabels()] == ["W3A3", "W4A4"]
    assert [values for _, values in points(accuracy)] == [[81.0, 81.0]] * 2
    assert [values for _, values in points(divergence)] == [[0.5, 0.5]] * 2
    # Side by side around the middle of a width, so that equal figures do not hide each other.
    (first, later), (second, last) = (places for places, _ in points(accuracy))
    assert (first, later, second, last) == (-0.125, 0.875, 0.125, 1.125)


def test_bars_are_standard_deviations() -> None:
    panel = figures(several())[0].axes[1]
    spread = statistics.stdev(KL)
    for (_, low), (_, high) in bars(panel):
        assert (low, high) == (pytest.approx(0.5 - spread), pytest.approx(0.5 + spread))


def test_a_bar_does_not_reach_zero_on_a_logarithmic_axis() -> None:
    wide = table({"a w4a4": [row(0, kl=0.01), row(1, kl=2.0)]})
    (_, low), (_, high) = bars(figures(wide)[0].axes[1])[0]
    assert low == pytest.approx(0.1 * 1.005)
    assert high == pytest.approx(1.005 + statistics.stdev([0.01, 2.0]))


def test_the_cost_of_each_recipe_and_width_is_a_point() -> None:
    panels = figures(several())[1].axes
    assert [panel.get_xlabel() for panel in panels] == ["float block steps", "seconds"] * 2
    assert [panel.get_ylabel() for panel in panels] == ["top-1 %", "top-1 %", "KL", "KL"]
    assert {panel.get_xscale() for panel in panels} == {"log"}
    assert points(panels[0]) == [([30.0], [81.0])] * 4
    assert points(panels[3]) == [([20.0], [0.5])] * 4
    fills = [each.lines[0].get_fillstyle() for each in panels[0].containers]
    assert fills == ["full", "none"] * 2
    (left, right), _ = bars(panels[1])
    assert (left[0], right[0]) == (10.0, 30.0)


@pytest.mark.parametrize("recipes", [1, 15])
def test_nothing_lies_over_anything_else(recipes: int) -> None:
    for figure in figures(several(recipes, ("w3a3", "w4a4", "w6a6"))):
        legend = figure.legends[0].get_window_extent()
        panels = [panel.get_tightbbox() for panel in figure.axes]
        title = next(text for text in figure.texts if "net" in text.get_text()).get_window_extent()
        assert all(panel is not None and panel.x1 <= legend.x0 and panel.y1 <= title.y0 for panel in panels)
        assert figure.bbox.x0 <= min(panel.x0 for panel in panels if panel)
        assert (legend.x1, legend.y1) <= (figure.bbox.x1, figure.bbox.y1)
        assert legend.y0 >= figure.bbox.y0
        assert not any(one.overlaps(other) for one in panels for other in panels if one and other and one is not other)


def test_the_legend_names_recipes_float_and_widths() -> None:
    bits, cost = figures(several())
    named = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in (bits, cost)]
    assert named == [["recipe_0", "recipe_1", "float"], ["recipe_0", "recipe_1", "float", "W3A3", "W4A4"]]


def test_recipes_look_unlike_each_other() -> None:
    looks = [(*pictures._Mark(place, 91).look.values(),) for place in range(91)]
    assert len(set(looks)) == 91
    assert all(one[0] != other[0] for one, other in itertools.pairwise(looks))


def test_the_title_tells_network_images_and_seeds() -> None:
    titles = [
        next(text.get_text() for text in figures(comparison)[0].texts if "net" in text.get_text())
        for comparison in (several(), table({"a w4a4": [row(0)]}))
    ]
    assert titles == [
        "net\n20 evaluation images, mean and standard deviation of 3 seeds",
        "net\n20 evaluation images",
    ]


def test_what_failed_or_has_no_number_is_left_out() -> None:
    rows = {
        "bad w4a4": [{"seed": 0, "failed": "why"}],
        "half w4a4": [row(0), {"seed": 1, "failed": "why"}],
        "lost w4a4": [row(0, kl=float("nan"))],
        "exact w4a4": [row(0, kl=0.0, seconds=0.0, float_block_steps=0)],
    }
    bits, cost = figures(table(rows))
    assert [text.get_text() for text in bits.legends[0].get_texts()] == ["half", "lost", "exact", "float"]
    assert [values for _, values in points(bits.axes[0])] == [[80.0]] * 3
    assert [values for _, values in points(bits.axes[1])] == [[0.5], [1e-6]]
    assert points(cost.axes[2])[1] == ([0.5], [1e-6])


@pytest.mark.parametrize(
    ("columns", "kept", "titles"),
    [
        (COLUMNS, {"agreement", "kl"}, ["agreement %", "KL"]),
        ((("box_ap", "box AP %"), ("mask_ap", "mask AP %")), {"box_ap", "mask_ap"}, ["box AP %"]),
    ],
    ids=["unlabelled", "detector"],
)
def test_the_first_metric_that_there_is_and_the_divergence_are_drawn(
    columns: Any, kept: set[str], titles: list[str]
) -> None:
    measured = {name: value for name, value in row(0, box_ap=30.0, mask_ap=20.0).items() if name not in dict(COLUMNS)}
    measured = {**measured, **dict.fromkeys(kept, 1.0)}
    bits, cost = figures(table({"a w4a4": [measured]}, columns=columns, float_row={}))
    assert [panel.get_ylabel() for panel in bits.axes] == titles
    assert len(cost.axes) == 2 * len(titles)
    assert [text.get_text() for text in bits.legends[0].get_texts()] == ["a"]


def test_the_same_comparison_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        draw(several(), tmp_path / folder)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == NAMES
    for name in NAMES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / NAMES[0]).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "one" / NAMES[1]).read_text(encoding="utf-8")
    assert "<!-- recipe_1 -->" in text
    assert "<dc:date>" not in text


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    draw(table({"bad w4a4": [{"seed": 0, "failed": "why"}]}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_a_line_tells_how_to_get_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger=pictures.__name__)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw(several(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (line,) = caplog.messages
    assert "pip install 'isvit-lightning[plot]'" in line


def test_no_state_is_left_and_no_window_can_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(mpl.rcParams)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw(several(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert dict(mpl.rcParams) == before
