"""The command line from end to end, in this process."""

import csv
import io
import json
import re
import shutil
import statistics
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detection.cli import DetectionCLI  # needs no mmdet until it is run
from isvit_lightning.cli import IsvitCLI, program_name
from isvit_lightning.embedded.digits import digit_images, digit_names
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import load
from isvit_lightning.program import chosen_program, main
from isvit_lightning.quantizers import Uniform
from isvit_lightning.recipe import Variant, read_recipe
from isvit_lightning.run.arguments import default_directory, with_recipe, with_run_config
from isvit_lightning.run.benchmark import pytorch
from isvit_lightning.stages import Inputs, StraightThrough
from isvit_lightning.storage.files import read_tensors
from tests.command_line import CONFIGS, DETECTION, QUICKSTART, SMALL, refused
from tests.data.samples import png

pytestmark = pytest.mark.usefixtures("own_arguments")

ACTIVATIONS = ("qkv_in", "query", "key", "attn_prob", "value", "proj_in", "fc1_in", "gelu_out", "head_in")
ROWS = ["float", "round_to_nearest", "repq", "stage1", "quantized"]
COMPARE = ["compare", "--config", QUICKSTART, *SMALL]
CELLS = ["--methods", "repq,isvit", "--bits", "w3a3,w4a4", "--seeds", "0,1"]
TITLES = ["repq w3a3", "isvit w3a3", "repq w4a4", "isvit w4a4"]
COSTS = ("seconds", "float_block_steps", "peak_memory_bytes")


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def same_network(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same bits; safetensors orders its metadata at random."""
    (one, about_one), (other, about_other) = (read_tensors(run / "quantized.safetensors") for run in (first, second))
    assert about_one == about_other
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_fit_writes_the_run_directory(quickstart_run: Path) -> None:
    names = {path.name for path in quickstart_run.iterdir()}
    assert names == {"config.yaml", "quantized.safetensors", "results.json", "calibration.json", "logs"}
    config = yaml.safe_load((quickstart_run / "config.yaml").read_text())
    assert config["model"]["iterations"] == 1
    assert config["model"]["bits"] == {"weight": 3, "activation": 3}
    assert config["data"]["init_args"]["calibration_images"] == 16
    calibration = json.loads((quickstart_run / "calibration.json").read_text())
    assert calibration.keys() == {"sha256", "images", "skipped", "network", "run"}
    assert len(calibration["images"]) == len(set(calibration["images"])) == 16
    assert re.fullmatch(r"[0-9a-f]{64}", calibration["sha256"])
    assert calibration["network"]["name"] == "vit_digits"


def test_fit_logs_to_csv_and_tensorboard(quickstart_run: Path) -> None:
    logs, stages = quickstart_run / "logs", ["stage1", "stage2", "stage3"]
    assert sorted(path.name for path in logs.iterdir()) == ["metrics.csv", "quantizers.csv", *stages]
    assert all(list((logs / name).glob("events.out.tfevents.*")) for name in stages)
    for name, column in (("metrics", "loss"), ("quantizers", "snr_db")):
        with (logs / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert sorted({row["step"] for row in rows}) == stages
        assert all(row[column] for row in rows)


def test_results_hold_exactly_what_is_promised(quickstart_run: Path) -> None:
    content = results(quickstart_run)
    assert list(content["metrics"]) == ROWS
    float_row, *others = content["metrics"].values()
    assert float_row.keys() == {"top1", "top5"}
    assert all(row.keys() == {"top1", "top5", "agreement", "kl"} for row in others)
    assert all(0 <= row["agreement"] <= 100 and row["kl"] > 0 for row in others)
    assert content["metrics"]["float"]["top1"] >= 90
    assert content["bits"] == {"weight": 3, "activation": 3}
    assert content["audit"]["n_codes"] == dict.fromkeys((*ACTIVATIONS, "weight"), 8)
    assert content["images"] == {"calibration": 16, "evaluation": 20}
    assert (content["network"], content["recipe"], content["seed"], content["iterations"]) == (
        "vit_digits",
        "isvit",
        0,
        1,
    )
    steps = [content["seconds"][step] for step in ("stage1", "stage2", "stage3")]
    assert content["seconds"]["total"] == pytest.approx(sum(steps), abs=0.02)
    assert content["seconds"]["total"] > content["seconds"]["calibrate"] > 0
    assert content["size_bytes"].keys() == {"float", "packed"}
    assert content["size_bytes"]["packed"] == (quickstart_run / "quantized.safetensors").stat().st_size
    assert content["size_bytes"]["packed"] < 0.2 * content["size_bytes"]["float"]


def test_seconds_are_those_of_the_recipe_alone(quickstart_run: Path) -> None:
    assert results(quickstart_run)["seconds"].keys() == {"calibrate", "stage1", "stage2", "stage3", "total"}


@pytest.mark.parametrize("form", ["folder", "file", "equals"])
def test_test_prints_what_fit_measured(quickstart_run: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(quickstart_run / "quantized.safetensors" if form == "file" else quickstart_run)
    arguments = [f"--ckpt_path={path}"] if form == "equals" else ["--ckpt_path", path]
    assert main(["test", *arguments]) == 0
    metrics = results(quickstart_run)["metrics"]["quantized"]
    accuracies = f"top-1 {metrics['top1']:.2f} %  top-5 {metrics['top5']:.2f} %"
    expected = f"{accuracies}  agreement {metrics['agreement']:.2f} %  KL {metrics['kl']:.4f}  on 20 images"
    assert expected in capsys.readouterr().out


def test_test_without_a_run_measures_the_float_network(
    quickstart_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "--config", QUICKSTART, "--data.evaluation_images", "20"]) == 0
    assert f"top-1 {results(quickstart_run)['metrics']['float']['top1']:.2f} %" in capsys.readouterr().out


def test_the_data_let_the_measured_network_go() -> None:
    kept: list[Any] = []

    class Keeping(IsvitCLI):
        def _runner(self) -> Any:
            kept.append(self.datamodule)
            return super()._runner()

    assert main(["test", "--config", QUICKSTART, *SMALL], Keeping) == 0
    assert kept[0].trainer is None


def test_predict_writes_the_classes_of_the_loaded_network(quickstart_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(quickstart_run, tmp_path / "copy"))
    assert main(["predict", "--ckpt_path", str(copy)]) == 0
    with (copy / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert list(rows[0]) == ["image", "class", "probability"]
    assert len({row["image"] for row in rows}) == 20
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)
    position = {name: index for index, name in enumerate(digit_names("held_out"))}
    with torch.no_grad():
        logits = load(copy)(digit_images("held_out")[0][[position[row["image"]] for row in rows]])
    assert [int(row["class"]) for row in rows] == logits.argmax(dim=1).tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        logits.softmax(dim=1).amax(dim=1).tolist(), abs=1e-5
    )


def test_predict_reads_a_flat_folder_without_labels(quickstart_run: Path, tmp_path: Path) -> None:
    """The run was evaluated on other images, of another kind of data; more were asked for than the folder holds."""
    copy, photos = Path(shutil.copytree(quickstart_run, tmp_path / "copy")), tmp_path / "photos"
    photos.mkdir()
    for name, value in (("a, b.png", 1), ("c.png", 200)):
        (photos / name).write_bytes(png(value, (32, 32)))
    data = ["--data", "isvit_lightning.data.ImageFolderDataModule", "--data.evaluation", str(photos)]
    assert main(["predict", "--ckpt_path", str(copy), *data]) == 0
    with (copy / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a, b.png", "c.png"]
    gray = torch.tensor([1.0, 200.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32) / 255
    with torch.no_grad():
        expected = load(copy)((gray - 0.5) / 0.5).softmax(dim=1).max(dim=1)
    assert [int(row["class"]) for row in rows] == expected.indices.tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_predict_without_images(quickstart_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["predict", "--ckpt_path", str(quickstart_run), "--data", "ImageFolderDataModule"], capsys)
    assert "There are no images to predict on" in line
    assert "data.evaluation" in line


def test_benchmark_takes_a_run_behind_the_verb(
    quickstart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch, "missing_compiler", lambda device: "there is no C++ compiler c")
    run = tmp_path / "run"
    shutil.copytree(quickstart_run, run)
    options = ["--batches", "1", "--repeats", "2", "--engines", "pytorch", "--accuracy", "false", "--profile", "true"]
    assert main(["benchmark", str(run), *options]) == 0
    written = json.loads((run / "benchmark.json").read_text())
    assert [row["form"] for row in written["speed"]] == ["float, eager", "simulated, eager", "integer, eager"]
    assert (written["repeats"], written["images"]) == (2, 0)
    out = capsys.readouterr().out
    assert "integer, eager" in out
    assert "PyTorch, integer, eager, patch_embed.proj: its input is float" in out
    assert main(["benchmark", str(run), "--engines", "abacus"]) == 2
    assert 'There is no engine "abacus", expected some of' in capsys.readouterr().err


def test_inspect_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--config", QUICKSTART]) == 0
    printed = capsys.readouterr().out
    for part in (
        "6 units",
        "8 norms with a grid by channel",
        "33 activation and 18 weight quantizers",
        "patch_embed.proj",
    ):
        assert part in printed


def test_fit_without_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--evaluate", "false", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", QUICKSTART, *SMALL, *arguments]) == 0
    content = results(tmp_path / "run")
    assert content["metrics"] == {}
    assert content["images"] == {"calibration": 16, "evaluation": 0}
    assert "top-1" not in capsys.readouterr().out


def test_fit_without_baselines_gives_the_same_network(quickstart_run: Path, tmp_path: Path) -> None:
    arguments = ["--baselines", "[]", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", QUICKSTART, *SMALL, *arguments]) == 0
    content = results(tmp_path / "run")
    assert list(content["metrics"]) == ["float", "stage1", "quantized"]
    assert content["metrics"]["quantized"] == results(quickstart_run)["metrics"]["quantized"]
    assert same_network(tmp_path / "run", quickstart_run)


@pytest.mark.parametrize(("name", "rows"), [("repq", ["ranges"]), ("round_to_nearest", ["ranges"])])
def test_a_recipe_as_the_result_is_what_it_is_as_a_baseline(
    name: str, rows: list[str], quickstart_run: Path, tmp_path: Path
) -> None:
    method = ["--config", str(CONFIGS / "methods" / f"{name}.yaml"), "--baselines", "[]"]
    arguments = [*SMALL, *method, "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", QUICKSTART, *arguments]) == 0
    content = results(tmp_path / "run")
    assert content["recipe"] == name
    assert list(content["metrics"]) == ["float", *rows, "quantized"]
    assert content["metrics"]["quantized"] == results(quickstart_run)["metrics"][name]


def test_a_baseline_may_be_a_file(quickstart_run: Path, tmp_path: Path) -> None:
    path = shutil.copy(CONFIGS / "methods" / "repq.yaml", tmp_path / "mine.yaml")
    arguments = ["--baselines", f"[{path}]", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", QUICKSTART, *SMALL, *arguments]) == 0
    content = results(tmp_path / "run")
    assert list(content["metrics"]) == ["float", str(path), "stage1", "quantized"]
    assert content["metrics"][str(path)] == results(quickstart_run)["metrics"]["repq"]


def test_the_configuration_of_a_run_runs_again(quickstart_run: Path, tmp_path: Path) -> None:
    arguments = ["--baselines", "[]", "--trainer.default_root_dir", str(tmp_path / "again")]
    assert main(["fit", "--config", str(quickstart_run / "config.yaml"), *arguments]) == 0
    assert same_network(tmp_path / "again", quickstart_run)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["fit", "--help"],
        ["test", "--help"],
        ["predict", "--help"],
        ["inspect", "--help"],
        ["compare", "--help"],
        ["benchmark", "--help"],
        ["fit", "--config", QUICKSTART, "--print_config"],
    ],
    ids=" ".join,
)
def test_help_and_print_config_succeed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as left:
        status = left.code or 0
    assert status == 0
    printed = capsys.readouterr()
    assert len(printed.out) > 100
    if "--print_config" in arguments:
        config = yaml.safe_load(printed.out)
        assert config["model"]["network"]["name"] == "vit_digits"


def test_the_configuration_of_the_run_comes_first(quickstart_run: Path) -> None:
    expanded = with_run_config(
        ["test", f"--ckpt_path={quickstart_run / 'quantized.safetensors'}", "--seed_everything", "3"]
    )
    config = str(quickstart_run / "config.yaml")
    assert expanded == ["test", "--config", config, "--ckpt_path", str(quickstart_run), "--seed_everything", "3"]
    assert with_run_config(["fit", "--config", "a.yaml"]) == ["fit", "--config", "a.yaml"]
    with pytest.raises(IsvitError, match="holds no finished run"):
        with_run_config(["test", "--ckpt_path", str(quickstart_run / "absent")])


def test_the_default_recipe_comes_before_everything_but_a_whole_recipe(quickstart_run: Path) -> None:
    default, verbs = ["--config", str(CONFIGS / "methods" / "isvit.yaml")], ("fit", "inspect")
    assert with_recipe(["fit", "--config", QUICKSTART], verbs) == ["fit", *default, "--config", QUICKSTART]
    assert with_recipe(["--config", QUICKSTART], verbs) == [*default, "--config", QUICKSTART]
    # A section of changes is no whole recipe; that of a finished run is.
    assert with_recipe(["fit", "--config", DETECTION], verbs) == ["fit", *default, "--config", DETECTION]
    for whole in (CONFIGS / "methods" / "repq.yaml", quickstart_run / "config.yaml"):
        arguments = ["fit", "--config", QUICKSTART, f"--config={whole}"]
        assert with_recipe(arguments, verbs) == arguments


def test_options_change_the_recipe_by_role_and_by_step() -> None:
    changes = (
        "{stage1: {inputs: {read: float}, trainables: {rate: 1.0e-3, relative: false}}, stage2: {statistic: median}}"
    )
    options = ["--model.recipe.changes", changes, "--model.recipe.placement.attn_prob.format", "Uniform"]
    options += ["--model.recipe.placement.others", "{box_head_in: {bits: 8, granularity: channel}}"]
    recipe, default = IsvitCLI(["--config", QUICKSTART, *options], run=False).model.recipe, read_recipe("isvit")
    stage1, stage2, stage3 = default.steps
    assert recipe.steps == [
        replace(stage1, inputs=Inputs("float"), trainables=StraightThrough(1e-3, relative=False)),
        replace(stage2, statistic="median"),
        stage3,
    ]
    kept, attn_prob = default.placement, replace(default.placement.attn_prob, format=Uniform())
    wider = {"box_head_in": Variant(bits=8, granularity="channel")}
    assert recipe.placement == replace(kept, attn_prob=attn_prob, others=wider)


def test_changes_of_one_step_leave_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISVIT_DATA", "/nowhere")
    option = ["--model.recipe.changes.stage3", "{recalibrate: unit}"]
    config = str(CONFIGS / "imagenet" / "vit_tiny_sample.yaml")
    stage1, _, stage3 = IsvitCLI(["--config", config, *option], run=False).model.recipe.steps
    assert stage1.trainables == StraightThrough(6e-4, relative=False)
    assert stage3 == replace(read_recipe("isvit").steps[2], recalibrate="unit")


def test_runs_are_named_by_their_configurations() -> None:
    assert default_directory(["configs/imagenet/deit_tiny.yaml", "configs/bits/w3a3.yaml"]) == Path(
        "runs/deit_tiny-w3a3"
    )
    assert default_directory([]) == Path("runs/default")
    assert default_directory([CONFIGS / "methods" / "isvit.yaml", QUICKSTART]) == Path("runs/quickstart")


def test_the_program_is_what_the_last_configuration_names(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"program": program_name(IsvitCLI)}))
    assert chosen_program(["fit"]) is IsvitCLI
    assert chosen_program(["fit", "--config", QUICKSTART]) is IsvitCLI
    assert chosen_program(["fit", "--config", DETECTION]) is DetectionCLI
    assert chosen_program(["fit", f"--config={DETECTION}", "--config", str(other)]) is IsvitCLI
    assert chosen_program(["fit", "--config", str(other), "--program=detection.cli.DetectionCLI"]) is DetectionCLI
    assert chosen_program(["fit", "--config", "/nowhere.yaml"]) is IsvitCLI


@pytest.mark.parametrize("name", ["nowhere.CLI", "detection.cli.Nothing", "CLI", "json.JSONDecoder"])
def test_a_wrong_program_is_one_sentence(name: str) -> None:
    with pytest.raises(IsvitError, match=r", expected one such as .*: change program\.$"):
        chosen_program(["fit", "--program", name])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Directory and output of two recipes at two widths with two seeds; not to be changed."""
    directory, out = tmp_path_factory.mktemp("compared") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "argv", ["pytest"])
        assert main([*COMPARE, *CELLS, "--trainer.default_root_dir", str(directory)]) == 0
    return directory, out.getvalue()


def comparison(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "comparison.json").read_text())
    return content


def table_of(directory: Path) -> list[list[str]]:
    with (directory / "comparison.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def cells_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory / "cells").iterdir()}


def test_compare_writes_the_table_three_times(compared: tuple[Path, str]) -> None:
    directory, printed = compared
    names = {path.name for path in directory.iterdir()}
    pictures = {f"comparison_{name}.{form}" for name in ("bits", "cost") for form in ("png", "svg")}
    assert names == {"comparison.csv", "comparison.json", "comparison.md", "cells", "parts"} | pictures
    assert {path.name for path in (directory / "cells").iterdir()} == {
        f"{title.replace(' ', '-')}-seed{seed}.json" for title in TITLES for seed in (0, 1)
    }
    lines = table_of(directory)
    assert [" ".join(line[:2]) for line in lines] == ["recipe bits", "float w32a32", *TITLES]
    markdown = (directory / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in markdown[:1] + markdown[2:]] == lines
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    assert [[text.strip() for text in row.strip("│").split("│")] for row in rows] == lines[1:]
    assert "vit_digits, 20 evaluation images" in printed


def test_figures_of_the_table_are_those_of_its_cells(compared: tuple[Path, str]) -> None:
    header, float_row, *lines = table_of(compared[0])
    content = comparison(compared[0])
    assert list(content["rows"]) == TITLES
    for title, line in zip(TITLES, lines, strict=True):
        files = [f"{title.replace(' ', '-')}-seed{seed}.json" for seed in (0, 1)]
        kept = [json.loads((compared[0] / "cells" / name).read_text())["row"] for name in files]
        assert content["rows"][title] == [{"seed": seed, **row} for seed, row in enumerate(kept)]
        figures = dict(zip(header, line, strict=True))
        for key, name, scale, digits in (
            ("top1", "top-1 %", 1, 2),
            ("top5", "top-5 %", 1, 2),
            ("agreement", "agreement %", 1, 2),
            ("kl", "KL", 1, 4),
            ("seen_kl", "seen KL", 1, 4),
            ("unseen_over_seen", "unseen/seen", 1, 2),
            ("seconds", "seconds", 1, 2),
            ("float_block_steps", "float block steps", 1, 0),
            ("peak_memory_bytes", "peak GB", 1e-9, 2),
        ):
            values = [scale * row[key] for row in kept]
            mean, deviation = (float(text) for text in figures[name].split(" ± "))
            assert mean == pytest.approx(statistics.mean(values), abs=0.51 * 10**-digits)
            assert deviation == pytest.approx(statistics.stdev(values), abs=0.51 * 10**-digits)
    assert float_row[2:6] == [f"{content['float'][key]:.2f}" for key in ("top1", "top5")] + ["", ""]


def test_a_cell_is_what_fit_measures(compared: tuple[Path, str], quickstart_run: Path) -> None:
    metrics, content = results(quickstart_run)["metrics"], comparison(compared[0])
    assert content["float"] == metrics["float"]
    for row, name in (("repq", "repq"), ("isvit", "quantized")):
        cell = content["rows"][f"{row} w3a3"][0]
        assert {key: cell[key] for key in metrics[name]} == metrics[name]
    audit = results(quickstart_run)["audit"]
    cell = content["rows"]["isvit w3a3"][0]
    assert audit == {key: cell[key] for key in audit}


def test_compare_again_measures_nothing_anew(
    compared: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(compared[0], tmp_path / "copy"))
    for path in copy.glob("comparison.*"):
        path.unlink()
    monkeypatch.setattr("isvit_lightning.run.compare.calibrate_network", None)
    assert main([*COMPARE, *CELLS, "--trainer.default_root_dir", str(copy)]) == 0
    assert capsys.readouterr().out == compared[1]
    assert cells_of(copy) == cells_of(compared[0])
    for path in compared[0].glob("comparison.*"):
        assert (copy / path.name).read_bytes() == path.read_bytes()


def test_a_cell_that_was_removed_is_measured_again(compared: tuple[Path, str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(compared[0], tmp_path / "copy"))
    name = "isvit-w4a4-seed1.json"
    (copy / "cells" / name).unlink()
    assert main([*COMPARE, *CELLS, "--trainer.default_root_dir", str(copy)]) == 0
    before, after = cells_of(compared[0]), cells_of(copy)
    old, new = (json.loads(cells.pop(name)) for cells in (before, after))
    assert after == before
    assert old["conditions"] == new["conditions"]
    for key in COSTS:
        assert new["row"].pop(key) > 0
        del old["row"][key]
    assert new["row"] == old["row"]


def test_compare_tells_a_recipe_that_fails_and_goes_on(
    compared: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(compared[0], tmp_path / "copy"))
    content = yaml.safe_load((CONFIGS / "methods" / "round_to_nearest.yaml").read_text())
    content["model"]["recipe"]["placement"] = {"others": {"box_head_in": {"bits": 8}}}
    path = tmp_path / "boxes.yaml"
    path.write_text(yaml.safe_dump(content))
    arguments = ["--methods", f"{path},repq", "--bits", "w3a3", "--seeds", "0,1"]
    assert main([*COMPARE, *arguments, "--trainer.default_root_dir", str(copy)]) == 0
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    lines = table_of(copy)
    assert [line[:2] for line in lines[2:]] == [["boxes", "w3a3"], ["repq", "w3a3"]]
    assert lines[2][2].startswith("failed: ")
    assert "box_head_in" in lines[2][2]
    assert lines[3] == table_of(compared[0])[2]
    assert [cell.keys() for cell in comparison(copy)["rows"]["boxes w3a3"]] == [{"seed", "failed"}] * 2


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--data.calibration_images", "17"], "calibration images.number: 16 → 17"),
        (["--seed_everything", "1"], "calibration images.sha256"),
        (["--data.evaluation_images", "21"], "evaluation images.number: 20 → 21"),
        (["--model.iterations", "2"], "schedule.iterations: 1 → 2"),
    ],
    ids=["number", "draw", "evaluation", "iterations"],
)
def test_compare_refuses_other_conditions(
    options: list[str], difference: str, compared: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = cells_of(compared[0])
    line = refused([*COMPARE, *CELLS, *options, "--trainer.default_root_dir", str(compared[0])], capsys)
    assert f"{compared[0] / 'cells' / 'repq-w3a3-seed0.json'} was made under other conditions" in line
    assert difference in line
    assert line.endswith("choose another trainer.default_root_dir, or remove the file.")
    assert cells_of(compared[0]) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--methods", "repq,nothing"], "There is no recipe nothing, expected one of"),
        (["--methods", "repq,absent.yaml"], "There is no recipe absent.yaml, expected one of"),
        (["--methods", "repq,repq"], "--methods is 'repq,repq', expected one or more, each once"),
        (["--bits", "w4a4,4"], "--bits holds '4', expected widths from 2 to 8 such as w4a4"),
        (["--bits", "w1a4"], "--bits holds 'w1a4', expected widths from 2 to 8 such as w4a4"),
        (["--seeds", "0,one"], "--seeds holds 'one', expected whole numbers"),
        (["--seeds", "-1"], "--seeds holds '-1', expected whole numbers"),
        (["--seeds", "1,1"], "--seeds is '1,1', expected one or more, each once"),
        (["--choose-on", "16"], "--choose_on is 16, expected at least 1 of the 16 calibration images"),
        (["--choose_on", "half"], "choose_on"),
        (["--baselines", "[]"], "baselines"),
        (["--resume", "true"], "resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_compare_refuses_before_anything_is_measured(
    options: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("isvit_lightning.run.runner.Runner.load_network", None)
    assert told in refused([*COMPARE, *options, "--trainer.default_root_dir", str(tmp_path / "run")], capsys)
    assert not (tmp_path / "run").exists()


def test_a_comparison_is_named_by_its_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(shutil.copy(QUICKSTART, tmp_path / "mine.yaml"))
    monkeypatch.chdir(tmp_path)
    bits = str(CONFIGS / "bits" / "w6a6.yaml")
    assert main(["compare", "--config", config, *SMALL, "--config", bits, "--methods", "round_to_nearest"]) == 0
    assert [line[:2] for line in table_of(tmp_path / "runs" / "compare-mine-w6a6")[2:]] == [
        ["round_to_nearest", "w6a6"]
    ]


@pytest.fixture
def unlabelled(tmp_path: Path) -> list[str]:
    """Options of folders of images without classes."""
    for folder, count, first in (("calibration", 6, 0), ("photos", 5, 110)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}.png").write_bytes(png(first + 20 * number, (32, 32)))
    data = {
        "class_path": "isvit_lightning.data.ImageFolderDataModule",
        "init_args": {
            "calibration": str(tmp_path / "calibration"),
            "evaluation": str(tmp_path / "photos"),
            "calibration_images": 6,
            "workers": 0,
        },
    }
    content = {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "run")},
        "model": {"network": {"name": "vit_digits"}, "iterations": 1, "bits": {"weight": 3, "activation": 3}},
        "data": data,
    }
    path = tmp_path / "unlabelled.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["--config", str(path)]


def test_images_without_classes_tell_the_distance_to_the_float_network(
    unlabelled: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *unlabelled, "--baselines", "[repq]"]) == 0
    printed = capsys.readouterr().out
    assert "agreement %" in printed
    assert "top-1" not in printed
    content = results(tmp_path / "run")
    assert content["images"] == {"calibration": 6, "evaluation": 5}
    assert list(content["metrics"]) == ["float", "repq", "stage1", "quantized"]
    assert content["metrics"].pop("float") == {}
    assert all(row.keys() == {"agreement", "kl"} and row["kl"] > 0 for row in content["metrics"].values())
    quantized = content["metrics"]["quantized"]

    assert main(["test", "--ckpt_path", str(tmp_path / "run")]) == 0
    expected = f"agreement {quantized['agreement']:.2f} %  KL {quantized['kl']:.4f}  on 5 images"
    assert capsys.readouterr().out.splitlines()[-1] == expected

    assert main(["test", *unlabelled]) == 0
    assert "on 5 images" in capsys.readouterr().out

    folder = ["--trainer.default_root_dir", str(tmp_path / "compared")]
    assert main(["compare", *unlabelled, "--methods", "repq,isvit", *folder]) == 0
    assert "top-1" not in capsys.readouterr().out
    assert comparison(tmp_path / "compared")["float"] == {}
    header, float_row, *lines = table_of(tmp_path / "compared")
    assert header[:6] == ["recipe", "bits", "agreement %", "KL", "seen KL", "unseen/seen"]
    assert float_row == ["float", "w32a32", *[""] * 11]
    for line, row in zip(lines, (content["metrics"]["repq"], quantized), strict=True):
        assert line[2:4] == [f"{row['agreement']:.2f}", f"{row['kl']:.4f}"]
