"""The command line from end to end, in this process, and one sentence for each mistake."""

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detection.cli import DetectionCLI  # needs no mmdet until it is run
from isvit_lightning.artifact import load
from isvit_lightning.cli import IsvitCLI, chosen_program, default_directory, main, program_name, with_run_config
from isvit_lightning.embedded.digits import digit_images, digit_names
from isvit_lightning.errors import IsvitError
from isvit_lightning.export.files import read_tensors
from tests.data.samples import png

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")
DETECTION = str(CONFIGS / "quickstart_detection.yaml")
SMALL = ["--model.iterations", "1", "--data.calibration_images", "16", "--data.evaluation_images", "20"]
ROWS = ["float", "round_to_nearest", "repq", "stage1", "quantized"]


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """``main`` replaces the process's arguments."""
    monkeypatch.setattr(sys, "argv", ["pytest"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the quickstart, tiny."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        assert main(["fit", "--config", QUICKSTART, *SMALL, "--trainer.default_root_dir", str(directory)]) == 0
    return directory


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def same_network(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same bits; safetensors orders its metadata at random."""
    (one, about_one), (other, about_other) = (read_tensors(run / "quantized.safetensors") for run in (first, second))
    assert about_one == about_other
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_fit_writes_the_run_directory(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {"config.yaml", "quantized.safetensors", "results.json", "calibration.json", "logs"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["iterations"] == 1
    assert config["model"]["bits"] == {"weight": 3, "activation": 3, "parts": {}}
    assert config["data"]["init_args"]["calibration_images"] == 16
    calibration = json.loads((run / "calibration.json").read_text())
    assert calibration.keys() == {"sha256", "images", "skipped", "network", "run"}
    assert len(calibration["images"]) == len(set(calibration["images"])) == 16
    assert re.fullmatch(r"[0-9a-f]{64}", calibration["sha256"])
    assert calibration["network"]["name"] == "vit_digits"


def test_fit_logs_to_csv_and_tensorboard(run: Path) -> None:
    assert sorted(path.name for path in (run / "logs").iterdir()) == ["stage1", "stage2", "stage3"]
    for name in ("stage1", "stage2", "stage3"):
        assert list((run / "logs" / name).glob("events.out.tfevents.*"))
        with (run / "logs" / name / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert any(row.get(f"{name}/loss_last") for row in rows)
        assert any(key.endswith("/snr_db") for row in rows for key in row)


def test_results_hold_exactly_what_is_promised(run: Path) -> None:
    content = results(run)
    assert list(content["metrics"]) == ROWS
    assert all(set(row) == {"top1", "top5"} for row in content["metrics"].values())
    assert content["metrics"]["float"]["top1"] >= 90
    assert content["bits"] == {"weight": 3, "activation": 3}
    assert content["n_codes"] == {"weight": 8, "activation": 8, "attn_prob": 8}
    assert content["images"] == {"calibration": 16, "evaluation": 20}
    assert (content["network"], content["method"], content["seed"], content["iterations"]) == (
        "vit_digits",
        "isvit",
        0,
        1,
    )
    assert {"calibrate", "stage1", "stage3", "total"} <= content["seconds"].keys()
    assert content["seconds"]["total"] >= content["seconds"]["stage1"] + content["seconds"]["stage3"] > 0
    assert content["size_bytes"].keys() == {"float", "packed"}
    assert content["size_bytes"]["packed"] == (run / "quantized.safetensors").stat().st_size
    assert content["size_bytes"]["packed"] < 0.2 * content["size_bytes"]["float"]


def test_seconds_are_those_of_the_method_alone(run: Path) -> None:
    assert results(run)["seconds"].keys() == {"calibrate", "stage1", "stage3", "total"}


@pytest.mark.parametrize("verb", ["test", "validate"])
@pytest.mark.parametrize("form", ["folder", "file", "equals"])
def test_test_prints_what_fit_measured(run: Path, verb: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(run / "quantized.safetensors" if form == "file" else run)
    arguments = [f"--ckpt_path={path}"] if form == "equals" else ["--ckpt_path", path]
    assert main([verb, *arguments]) == 0
    metrics = results(run)["metrics"]["quantized"]
    expected = f"top-1 {metrics['top1']:.2f} %  top-5 {metrics['top5']:.2f} %  on 20 images"
    assert expected in capsys.readouterr().out


def test_test_without_a_run_measures_the_float_network(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", QUICKSTART, "--data.evaluation_images", "20"]) == 0
    assert f"top-1 {results(run)['metrics']['float']['top1']:.2f} %" in capsys.readouterr().out


def test_the_data_let_the_measured_network_go() -> None:
    kept: list[Any] = []

    class Keeping(IsvitCLI):
        def _runner(self) -> Any:
            kept.append(self.datamodule)
            return super()._runner()

    assert main(["test", "--config", QUICKSTART, *SMALL], Keeping) == 0
    assert kept[0].trainer is None


def test_predict_writes_the_classes_of_the_loaded_network(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
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


def test_predict_reads_a_flat_folder_without_labels(run: Path, tmp_path: Path) -> None:
    """The run was evaluated on other images, of another kind of data; more were asked for than the folder holds."""
    copy, photos = Path(shutil.copytree(run, tmp_path / "copy")), tmp_path / "photos"
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


def test_predict_without_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["predict", "--ckpt_path", str(run), "--data", "ImageFolderDataModule"], capsys)
    assert "There are no images to predict on" in line
    assert "data.evaluation" in line


def test_inspect_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--config", QUICKSTART]) == 0
    printed = capsys.readouterr().out
    for part in ("6 units", "8 pairs for stage 2", "33 activation and 18 weight quantizers", "patch_embed.proj"):
        assert part in printed


def test_fit_without_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--evaluate", "false", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", QUICKSTART, *SMALL, *arguments]) == 0
    content = results(tmp_path / "run")
    assert content["metrics"] == {}
    assert content["images"] == {"calibration": 16, "evaluation": 0}
    assert "top-1" not in capsys.readouterr().out


def test_fit_without_baselines_gives_the_same_network(run: Path, tmp_path: Path) -> None:
    arguments = ["--baselines", "false", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", QUICKSTART, *SMALL, *arguments]) == 0
    content = results(tmp_path / "run")
    assert list(content["metrics"]) == ["float", "stage1", "quantized"]
    assert content["metrics"]["quantized"] == results(run)["metrics"]["quantized"]
    assert same_network(tmp_path / "run", run)


def test_the_configuration_of_a_run_runs_again(run: Path, tmp_path: Path) -> None:
    arguments = ["--baselines", "false", "--trainer.default_root_dir", str(tmp_path / "again")]
    assert main(["fit", "--config", str(run / "config.yaml"), *arguments]) == 0
    assert same_network(tmp_path / "again", run)


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


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which ``main`` refuses ``arguments``."""
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("isvit: ")
    assert "Traceback" not in printed.out + printed.err
    return lines[0]


@pytest.fixture
def folder_config(tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a fit of ``vit_digits`` on a folder of images."""

    def make(calibration: Path, **options: Any) -> list[str]:
        content = {
            "seed_everything": 0,
            "trainer": {"accelerator": "cpu", "default_root_dir": str(tmp_path / "run")},
            "model": {"network": {"name": "vit_digits"}, "iterations": 1},
            "data": {
                "class_path": "isvit_lightning.data.ImageFolderDataModule",
                "init_args": {"calibration": str(calibration), "calibration_images": 2, "workers": 0, **options},
            },
        }
        path = tmp_path / "folder.yaml"
        path.write_text(yaml.safe_dump(content))
        return ["fit", "--config", str(path), "--evaluate", "false"]

    return make


def test_images_of_a_folder_are_enough(folder_config: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    assert main(folder_config(tmp_path / "images")) == 0
    assert (tmp_path / "run" / "quantized.safetensors").exists()


def test_a_missing_folder(folder_config: Callable[..., list[str]], tmp_path: Path, capsys: Any) -> None:
    line = refused(folder_config(tmp_path / "absent"), capsys)
    assert str(tmp_path / "absent") in line
    assert "data.calibration" in line


def test_an_empty_folder(folder_config: Callable[..., list[str]], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "images").mkdir()
    assert "data.calibration" in refused(folder_config(tmp_path / "images"), capsys)


def test_an_unreadable_image(folder_config: Callable[..., list[str]], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(1))
    (tmp_path / "images" / "b.png").write_bytes(png(2)[:40])
    line = refused(folder_config(tmp_path / "images"), capsys)
    assert "b.png" in line
    assert "on_unreadable" in line


def test_an_unreadable_image_that_is_skipped_is_named(folder_config: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(4):
        content = png(number)
        (tmp_path / "images" / f"{number}.png").write_bytes(content[:40] if number == 1 else content)
    arguments = [*folder_config(tmp_path / "images"), "--data.on_unreadable", "skip", "--evaluate", "false"]
    run = tmp_path / "skipping"
    arguments += ["--data.calibration_images", "3", "--trainer.default_root_dir", str(run)]
    assert main(arguments) == 0
    content = json.loads((run / "calibration.json").read_text())
    assert content["skipped"] == ["1.png"]
    assert sorted(content["images"]) == ["0.png", "2.png", "3.png"]


def test_a_disk_that_fills_up_while_logs_are_written(run: Path, tmp_path: Path, capsys: Any) -> None:
    """A link to /dev/full in place of a log: the kernel itself refuses each byte."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    full = tmp_path / "full"
    (full / "logs" / "stage3").mkdir(parents=True)
    (full / "logs" / "stage3" / "metrics.csv").symlink_to("/dev/full")
    (full / "quantized.safetensors").write_bytes(b"of an earlier run")
    arguments = ["fit", "--config", QUICKSTART, *SMALL, "--evaluate", "false", "--trainer.default_root_dir", str(full)]
    line = refused(arguments, capsys)
    assert "full" in line
    assert "trainer.default_root_dir" in line
    assert (full / "quantized.safetensors").read_bytes() == b"of an earlier run"
    assert json.loads((full / "calibration.json").read_text())["images"]


def test_more_images_than_exist(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", "--config", QUICKSTART, "--data.calibration_images", "5000"], capsys)
    assert "5000 calibration images are asked for, but there are 1197" in line
    line = refused(["fit", "--config", QUICKSTART, "--data.evaluation_images", "5000"], capsys)
    assert "5000 evaluation images are asked for, but there are 600" in line


def test_a_missing_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("fit", "test", "inspect"):
        assert "absent.yaml" in refused([verb, "--config", str(tmp_path / "absent.yaml")], capsys)


def test_an_unknown_key_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("model.invented", "data.invented", "trainer.invented", "invented", "model.method.stage1.invented"):
        assert "invented" in refused(["fit", "--config", QUICKSTART, f"--{key}", "3"], capsys)


@pytest.mark.parametrize("section", ["model", "data", "trainer", "top", "method", "network"])
def test_an_unknown_key_in_a_configuration(section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(Path(QUICKSTART).read_text())
    place = {
        "model": content["model"],
        "data": content["data"]["init_args"],
        "trainer": content["trainer"],
        "top": content,
        "method": content["model"].setdefault("method", {}),
        "network": content["model"]["network"],
    }[section]
    place["invented"] = 3
    path = tmp_path / "strange.yaml"
    path.write_text(yaml.safe_dump(content))
    assert "invented" in refused(["fit", "--config", str(path)], capsys)


def test_a_configuration_that_is_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("model: [1, 2\n  bits: {")
    refused(["fit", "--config", str(path)], capsys)


@pytest.mark.parametrize("bits", [1, 9])
@pytest.mark.parametrize("kind", ["weight", "activation"])
def test_bits_outside_2_to_8(bits: int, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", "--config", QUICKSTART, f"--model.bits.{kind}", str(bits)], capsys)
    assert line == f"isvit: model.bits.{kind} is {bits}, expected 2 to 8: change it there."


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.iterations", "0"],
        ["--model.iterations", "many"],
        ["--model.method.softmax", "log3"],
        ["--model.method.stage1.learning_rate", "-1"],
        ["--model.network.name", "vit_didgits"],
        ["--data.calibration_images", "0"],
        ["--seed_everything", "soon"],
    ],
    ids=" ".join,
)
def test_values_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", "--config", QUICKSTART, *arguments], capsys)
    assert arguments[0].rpartition(".")[2].removeprefix("--") in line or arguments[1] in line


@pytest.mark.parametrize("arguments", [[], ["fitt"], ["fit"]], ids=["none", "typo", "no_network"])
def test_verbs_that_cannot_work(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(arguments, capsys)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_a_missing_run(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "absent", tmp_path):
        line = refused([verb, "--ckpt_path", str(path)], capsys)
        assert "holds no finished run" in line
        assert "--ckpt_path" in line


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_run(run: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    path = copy / "quantized.safetensors"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"\x07" * 500, "empty": b""}[damage])
    line = refused(["test", "--ckpt_path", str(copy)], capsys)
    assert "damaged" in line
    assert str(path) in line


def test_a_run_of_another_network(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["test", "--ckpt_path", str(run), "--model.network.name", "swin_digits"], capsys)
    assert "model.network" in line


def test_a_run_of_other_bits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["test", "--ckpt_path", str(run), "--model.bits.weight", "8"], capsys)
    assert "model.bits" in line


@pytest.fixture
def older(run: Path, tmp_path: Path) -> Path:
    """A run whose configuration lacks the keys that came later."""
    copy = Path(shutil.copytree(run, tmp_path / "older"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    model = config["model"]
    del model["bits"]["parts"], model["method"]["reconstruct"], model["method"]["stage3"]["range_learning_rate"]
    del model["network"]["interpolation"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def test_a_run_of_an_earlier_version_has_the_defaults_of_later_keys(older: Path) -> None:
    assert main(["test", "--ckpt_path", str(older), "--data.evaluation_images", "10"]) == 0


@pytest.mark.parametrize(
    ("option", "section"),
    [
        ("method.reconstruct=all", "method"),
        ("method.stage3.range_learning_rate=0.5", "method"),
        ("bits.weight=8", "bits"),
    ],
)
def test_another_choice_than_that_of_an_earlier_version_is_refused(
    older: Path, option: str, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"model.{section}" in refused(["test", "--ckpt_path", str(older), f"--model.{option}"], capsys)


def test_the_configuration_of_the_run_comes_first(run: Path) -> None:
    expanded = with_run_config(["test", f"--ckpt_path={run / 'quantized.safetensors'}", "--seed_everything", "3"])
    config = str(run / "config.yaml")
    assert expanded == ["test", "--config", config, "--ckpt_path", str(run), "--seed_everything", "3"]
    assert with_run_config(["fit", "--config", "a.yaml"]) == ["fit", "--config", "a.yaml"]
    with pytest.raises(IsvitError, match="holds no finished run"):
        with_run_config(["test", "--ckpt_path", str(run / "absent")])


def test_runs_are_named_by_their_configurations() -> None:
    assert default_directory(["configs/imagenet/deit_tiny.yaml", "configs/bits/w3a3.yaml"]) == Path(
        "runs/deit_tiny-w3a3"
    )
    assert default_directory([]) == Path("runs/default")


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
