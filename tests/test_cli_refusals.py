"""One sentence for each mistake on the command line, and what still runs in spite of one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from isvit_lightning.program import main
from tests.command_line import QUICKSTART, SMALL, refused
from tests.data.samples import png

pytestmark = pytest.mark.usefixtures("own_arguments")


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


def test_a_disk_that_fills_up_while_logs_are_written(quickstart_run: Path, tmp_path: Path, capsys: Any) -> None:
    """A link to /dev/full in place of a log: the kernel itself refuses each byte."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    full = tmp_path / "full"
    (full / "logs").mkdir(parents=True)
    (full / "logs" / "metrics.csv").symlink_to("/dev/full")
    arguments = ["fit", "--config", QUICKSTART, *SMALL, "--evaluate", "false", "--trainer.default_root_dir", str(full)]
    line = refused(arguments, capsys)
    assert "full" in line
    assert "trainer.default_root_dir" in line
    assert not (full / "quantized.safetensors").exists()
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
    for key in (
        "model.invented",
        "data.invented",
        "trainer.invented",
        "invented",
        "model.recipe.invented",
        "model.recipe.steps.invented",
    ):
        assert "invented" in refused(["fit", "--config", QUICKSTART, f"--{key}", "3"], capsys)


@pytest.mark.parametrize("section", ["model", "data", "trainer", "top", "recipe", "placement", "changes", "network"])
def test_an_unknown_key_in_a_configuration(section: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(Path(QUICKSTART).read_text())
    recipe = content["model"].setdefault("recipe", {})
    place = {
        "model": content["model"],
        "data": content["data"]["init_args"],
        "trainer": content["trainer"],
        "top": content,
        "recipe": recipe,
        "placement": recipe.setdefault("placement", {}).setdefault("query", {}),
        "changes": recipe.setdefault("changes", {}).setdefault("stage1", {}),
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
        ["--model.recipe.placement.attn_prob.format", "log3"],
        ["--model.recipe.placement.attn_prob.granularity", "row"],
        ["--model.recipe.placement.attn_prob.bits", "9"],
        ["--model.recipe.placement.others", "{box_head_in: {}}"],
        ["--model.recipe.reconstruct", "neck"],
        ["--model.recipe.range_images", "0"],
        ["--model.recipe.changes", "{stage1: {trainables: {rate: -1}}}"],
        ["--model.recipe.changes", "{stage4: {iterations: 1}}"],
        ["--model.recipe.changes", "{stage1: {inputs: {read: flaot}}}"],
        ["--model.recipe.changes", "{stage1: {recalibrate: sometimes}}"],
        ["--model.recipe.changes", "{stage2: {statistic: mode}}"],
        ["--baselines", "false"],
        ["--model.network.name", "vit_didgits"],
        ["--data.calibration_images", "0"],
        ["--seed_everything", "soon"],
    ],
    ids=" ".join,
)
def test_values_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", "--config", QUICKSTART, *SMALL, *arguments], capsys)
    assert arguments[0].rpartition(".")[2].removeprefix("--") in line or arguments[1] in line


def test_a_baseline_that_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", "--config", QUICKSTART, *SMALL, "--baselines", "[absent]"], capsys)
    assert "There is no recipe absent, expected one of" in line
    assert "round_to_nearest" in line
    for name, content in (("bits", "model: {bits: {weight: 3}}"), ("steps", "model: {recipe: {steps: [1]}}")):
        path = tmp_path / f"{name}.yaml"
        path.write_text(content)
        assert str(path) in refused(["fit", "--config", QUICKSTART, *SMALL, "--baselines", f"[{path}]"], capsys)


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
def test_a_damaged_run(quickstart_run: Path, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(quickstart_run, tmp_path / "copy"))
    path = copy / "quantized.safetensors"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "garbage": b"\x07" * 500, "empty": b""}[damage])
    line = refused(["test", "--ckpt_path", str(copy)], capsys)
    assert "damaged" in line
    assert str(path) in line


def test_a_run_of_another_network(quickstart_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["test", "--ckpt_path", str(quickstart_run), "--model.network.name", "swin_digits"], capsys)
    assert "model.network" in line


def test_a_run_of_other_bits(quickstart_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["test", "--ckpt_path", str(quickstart_run), "--model.bits.weight", "8"], capsys)
    assert "model.bits" in line


@pytest.fixture
def older(quickstart_run: Path, tmp_path: Path) -> Path:
    """A run whose configuration lacks the keys that came later."""
    copy = Path(shutil.copytree(quickstart_run, tmp_path / "older"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    model = config["model"]
    del model["recipe"]["reconstruct"], model["recipe"]["steps"][2]["init_args"]["range_learning_rate"]
    del model["recipe"]["placement"]["key"]["bits"], model["network"]["interpolation"]
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    return copy


def test_a_run_of_an_earlier_version_has_the_defaults_of_later_keys(older: Path) -> None:
    assert main(["test", "--ckpt_path", str(older), "--data.evaluation_images", "10"]) == 0


@pytest.mark.parametrize(
    ("option", "section"),
    [
        ("recipe.reconstruct=all", "recipe"),
        ("recipe.changes={stage3: {range_learning_rate: 0.5}}", "recipe"),
        ("recipe.placement.key.bits=8", "recipe"),
        ("recipe.placement.others={box_head_in: {bits: 8}}", "recipe"),
        ("bits.weight=8", "bits"),
    ],
)
def test_another_choice_than_that_of_an_earlier_version_is_refused(
    older: Path, option: str, section: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"model.{section}" in refused(["test", "--ckpt_path", str(older), f"--model.{option}"], capsys)
