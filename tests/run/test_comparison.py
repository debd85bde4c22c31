"""One table in three files: figures over seeds, cells that failed, and what the bits of a row really are."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from isvit_lightning.recipe import Bits, read_recipe
from isvit_lightning.run.cells import Cell
from isvit_lightning.run.comparison import Comparison

COLUMNS = (("top1", "top-1 %"), ("top5", "top-5 %"), ("agreement", "agreement %"), ("kl", "KL"))
HEADER = [
    *("recipe", "bits", "top-1 %", "agreement %", "KL"),
    *("seconds", "float block steps", "peak GB", "softmax values", "codes beyond", "float operands", "ranges"),
]
FLOAT = {"top1": 99.5}
TOP1, KL = (91.0, 92.5, 88.25), (0.01, 0.5, 0.123456)


def cell(method: str = "repq", bits: Bits | None = None, seed: int = 0) -> Cell:
    return Cell(method, read_recipe("repq"), bits or Bits(3, 4), seed)


def row(**changes: Any) -> dict[str, Any]:
    measured = {"top1": 90.0, "agreement": 91.0, "kl": 0.25}
    costs = {"seconds": 12.345, "float_block_steps": 678, "peak_memory_bytes": 1_234_567_890}
    audit = {"n_codes": {"weight": 8}, "n_values": {"attn_prob": 15}, "beyond": [], "float": [], "ranges": "static"}
    return {**measured, **costs, **audit, **changes}


def table(*cells: tuple[Cell, dict[str, Any]], float_row: dict[str, float] | None = None) -> Comparison:
    comparison = Comparison("net", COLUMNS, 20)
    comparison.set_float(FLOAT if float_row is None else float_row)
    for each, measured in cells:
        comparison.add(each, measured)
    return comparison


def several() -> Comparison:
    """Three seeds of a recipe at two widths, one cell of which failed, and one that always fails."""
    comparison = table()
    for bits in (Bits(3, 4), Bits(4, 4)):
        for seed, (top1, kl) in enumerate(zip(TOP1, KL, strict=True)):
            measured = row(top1=top1, kl=kl, seconds=1.0 + seed)
            failed = {"failed": "Memory ran out, expected more: buy some."}
            comparison.add(cell("repq", bits, seed), failed if bits.weight == 4 and seed == 1 else measured)
        for seed in range(2):
            comparison.add(cell("own.yaml", bits, seed), {"failed": f"Seed {seed} is | no [good], expected another."})
    return comparison


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def test_one_seed_has_no_deviation() -> None:
    lines = table((cell(), row())).lines()
    assert lines == [
        HEADER,
        ["float", "w32a32", "99.50", "", "", *[""] * 7],
        ["repq", "w3a4", "90.00", "91.00", "0.2500", "12.35", "678", "1.23", "15", "none", "0", "static"],
    ]


def test_figures_of_several_seeds_are_mean_and_standard_deviation() -> None:
    lines = several().lines()
    expected = [spread(list(TOP1), 2), "91.00 ± 0.00", spread(list(KL), 4), "2.00 ± 1.00", "678 ± 0", "1.23 ± 0.00"]
    assert lines[2] == ["repq", "w3a4", *expected, "15", "none", "0", "static"]


def test_seeds_that_failed_are_counted_and_left_out() -> None:
    line = several().lines()[4]
    assert line[:2] == ["repq (1 of 3 seeds failed)", "w4a4"]
    assert line[2:6] == [spread([91.0, 88.25], 2), "91.00 ± 0.00", spread([0.01, 0.123456], 4), "2.00 ± 1.41"]


def test_a_recipe_that_fails_with_every_seed_says_why() -> None:
    lines = several().lines()
    assert {len(line) for line in lines} == {len(HEADER)}
    assert lines[3] == ["own", "w3a4", "failed: Seed 0 is | no [good], expected another.", *[""] * 9]


def test_nothing_but_failures() -> None:
    comparison = table((cell(), {"failed": "why"}), float_row={})
    assert comparison.lines() == [
        ["recipe", "bits", *HEADER[5:]],
        ["float", "w32a32", *[""] * 7],
        ["repq", "w3a4", "failed: why", *[""] * 6],
    ]


def test_images_without_labels_leave_accuracies_out() -> None:
    measured = {name: value for name, value in row().items() if name != "top1"}
    lines = table((cell(), measured), float_row={}).lines()
    assert lines[0] == ["recipe", "bits", "agreement %", "KL", *HEADER[5:]]
    assert lines[1] == ["float", "w32a32", *[""] * 9]
    assert lines[2][:4] == ["repq", "w3a4", "91.00", "0.2500"]


def test_what_the_bits_really_are() -> None:
    audit = {"beyond": ["attn_prob", "weight"], "float": ["a.input", "b.left"], "ranges": "dynamic"}
    assert table((cell(), row(**audit))).lines()[2][-4:] == ["15", "attn_prob, weight", "2", "dynamic"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_that_gives_no_numbers_has_a_row(value: float, tmp_path: Path) -> None:
    comparison = table((cell(), row(kl=value)), (cell(seed=1), row()))
    assert comparison.lines()[2][4] == f"{value} ± nan"
    comparison.write(tmp_path)
    assert f"| {value} ± nan |" in (tmp_path / "comparison.md").read_text()


def test_rows_stand_in_the_order_of_their_first_cells() -> None:
    cells = [(cell(method, Bits(bits, 4), seed), row()) for seed in (0, 1) for bits in (4, 3) for method in ("b", "a")]
    lines = table(*cells).lines()
    assert [line[:2] for line in lines[2:]] == [["b", "w4a4"], ["a", "w4a4"], ["b", "w3a4"], ["a", "w3a4"]]


def test_the_terminal_shows_every_text_as_it_is() -> None:
    comparison = several()
    comparison.network = "net[bold]"
    out = Console(width=400, record=True)
    out.print(comparison.table())
    printed = out.export_text().splitlines()
    assert printed[0].strip() == "net[bold], 20 evaluation images"
    rows = [[text.strip() for text in line.strip("│┃").split("│")] for line in printed if line.startswith("│")]
    assert rows == comparison.lines()[1:]


def test_markdown_csv_and_json_agree(tmp_path: Path) -> None:
    comparison = several()
    comparison.write(tmp_path / "run")
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.csv", "comparison.json", "comparison.md"]
    with (folder / "comparison.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines == comparison.lines()
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert text == comparison.markdown()
    marked = [line.removeprefix("| ").removesuffix(" |") for line in text.splitlines()]
    assert marked[1].split(" | ") == ["---", "---", *["---:"] * 10]
    del marked[1]
    assert [[part.replace("\\|", "|") for part in line.split(" | ")] for line in marked] == lines
    content = json.loads((folder / "comparison.json").read_text())
    assert content.keys() == {"network", "images", "float", "rows"}
    assert (content["network"], content["images"], content["float"]) == ("net", 20, FLOAT)
    assert content["rows"]["repq w3a4"][2] == {"seed": 2, **row(top1=88.25, kl=0.123456, seconds=3.0)}
    again = Comparison(content["network"], COLUMNS, content["images"], content["rows"], content["float"])
    assert again.lines() == lines


def chosen_on(*figures: tuple[str, Bits, int, dict[str, Any]]) -> Comparison:
    """A comparison on 64 images that are held out, with what was measured on them."""
    comparison = Comparison("net", COLUMNS, 20, held_out=64)
    comparison.set_float(FLOAT)
    for method, bits, seed, measured in figures:
        comparison.add(cell(method, bits, seed), measured)
    return comparison


def held(divergence: float, **changes: float) -> dict[str, Any]:
    return row(
        held_out_agreement=80.0, held_out_kl=divergence, seen_kl=0.125, unseen_over_seen=divergence / 0.125, **changes
    )


def test_images_that_were_held_out_have_columns() -> None:
    lines = chosen_on(("repq", Bits(3, 4), 0, held(0.5)), ("repq", Bits(3, 4), 1, held(0.25))).lines()
    titles = ["held-out agreement %", "held-out KL", "seen KL", "unseen/seen"]
    assert lines[0] == [*HEADER[:5], *titles, *HEADER[5:]]
    assert lines[1] == ["float", "w32a32", "99.50", *[""] * 13]
    spreads = ["80.00 ± 0.00", spread([0.5, 0.25], 4), "0.1250 ± 0.0000", spread([4.0, 2.0], 2)]
    assert lines[2][5:9] == spreads
    assert len(lines[2]) == len(lines[0])


def test_the_lowest_mean_on_held_out_images_is_chosen_at_each_width(tmp_path: Path) -> None:
    comparison = chosen_on(
        *(("a", Bits(3, 3), seed, held(kl, kl=0.01)) for seed, kl in enumerate((0.1, 0.9))),
        *(("b", Bits(3, 3), seed, held(kl, kl=9.0)) for seed, kl in enumerate((0.4, 0.5))),
        *(("a", Bits(4, 4), seed, held(0.1)) for seed in (0, 1)),
        *(("b", Bits(4, 4), seed, held(0.2)) for seed in (0, 1)),
    )
    assert comparison.chosen() == {"w3a3": "b", "w4a4": "a"}
    sentence = "Chosen by the KL on 64 held-out calibration images: b at w3a3, a at w4a4."
    assert comparison.choice() == sentence
    assert comparison.markdown().endswith(f"|\n\n{sentence}\n")
    out = Console(width=400, record=True)
    out.print(comparison.table())
    assert sentence in out.export_text()
    comparison.write(tmp_path)
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert (content["held_out"], content["chosen"]) == (64, {"w3a3": "b", "w4a4": "a"})


@pytest.mark.parametrize("broken", [{"failed": "why"}, held(float("nan")), held(float("inf")), row()])
def test_a_recipe_without_a_figure_for_each_seed_is_not_chosen(broken: dict[str, Any]) -> None:
    bad = [("a", Bits(3, 3), 0, held(0.01)), ("a", Bits(3, 3), 1, broken)]
    good = [("b", Bits(3, 3), seed, held(2.0)) for seed in (0, 1)]
    assert chosen_on(*bad, *good).chosen() == {"w3a3": "b"}
    assert chosen_on(*bad).choice() == "Chosen by the KL on 64 held-out calibration images: none."


def test_nothing_is_chosen_where_no_images_are_held_out() -> None:
    comparison = several()
    assert (comparison.choice(), comparison.held_out, comparison.table().caption) == ("", 0, "")
