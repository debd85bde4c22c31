"""The command line from end to end, in this process."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detection.cli import DetectionCLI  # needs no mmdet until it is run
from isvit_lightning.cli import IsvitCLI, chosen_program, main, program_name
from isvit_lightning.embedded.digits import digit_images, digit_names
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.artifact import load
from isvit_lightning.quantizers import Uniform
from isvit_lightning.recipe import Choice, read_recipe
from isvit_lightning.run.arguments import default_directory, with_recipe, with_run_config
from isvit_lightning.stages import Inputs, StraightThrough
from isvit_lightning.storage.files import read_tensors
from tests.command_line import CONFIGS, DETECTION, QUICKSTART, SMALL, refused
from tests.data.samples import png

pytestmark = pytest.mark.usefixtures("own_arguments")

ACTIVATIONS = ("qkv_in", "query", "key", "attn_prob", "value", "proj_in", "fc1_in", "gelu_out", "head_in")
ROWS = ["float", "round_to_nearest", "repq", "stage1", "quantized"]


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
    assert sorted(path.name for path in (quickstart_run / "logs").iterdir()) == ["stage1", "stage2", "stage3"]
    for name in ("stage1", "stage2", "stage3"):
        assert list((quickstart_run / "logs" / name).glob("events.out.tfevents.*"))
        with (quickstart_run / "logs" / name / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert any(row.get(f"{name}/loss_last") for row in rows)
        assert any(key.endswith("/snr_db") for row in rows for key in row)


def test_results_hold_exactly_what_is_promised(quickstart_run: Path) -> None:
    content = results(quickstart_run)
    assert list(content["metrics"]) == ROWS
    float_row, *others = content["metrics"].values()
    assert float_row.keys() == {"top1", "top5"}
    assert all(row.keys() == {"top1", "top5", "agreement", "kl"} for row in others)
    assert all(0 <= row["agreement"] <= 100 and row["kl"] > 0 for row in others)
    assert content["metrics"]["float"]["top1"] >= 90
    assert content["bits"] == {"weight": 3, "activation": 3}
    assert content["n_codes"] == dict.fromkeys((*ACTIVATIONS, "weight"), 8)
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
    changes = "{stage1: {inputs: {read: float}, trainables: {learning_rate: 1.0e-3}}, stage2: {statistic: median}}"
    options = ["--model.recipe.changes", changes, "--model.recipe.placement.attn_prob.format", "Uniform"]
    options += ["--model.recipe.placement.others", "{box_head_in: {bits: 8, granularity: channel}}"]
    recipe, default = IsvitCLI(["--config", QUICKSTART, *options], run=False).model.recipe, read_recipe("isvit")
    stage1, stage2, stage3 = default.steps
    assert recipe.steps == [
        replace(stage1, inputs=Inputs("float"), trainables=StraightThrough(learning_rate=1e-3)),
        replace(stage2, statistic="median"),
        stage3,
    ]
    kept, attn_prob = default.placement, replace(default.placement.attn_prob, format=Uniform())
    wider = {"box_head_in": Choice(bits=8, granularity="channel")}
    assert recipe.placement == replace(kept, attn_prob=attn_prob, others=wider)


def test_changes_of_one_step_leave_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISVIT_DATA", "/nowhere")
    option = ["--model.recipe.changes.stage3", "{recalibrate: unit}"]
    config = str(CONFIGS / "imagenet" / "vit_tiny_sample.yaml")
    stage1, _, stage3 = IsvitCLI(["--config", config, *option], run=False).model.recipe.steps
    assert stage1.trainables == StraightThrough(learning_rate=6e-4)
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
