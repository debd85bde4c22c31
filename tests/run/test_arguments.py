"""The command line gets the configuration of its run and a recipe put in front, and nothing else changes."""

from pathlib import Path

import pytest

from isvit_lightning.cli import IsvitCLI
from isvit_lightning.errors import IsvitError
from isvit_lightning.recipe import read_recipe, recipe_file
from isvit_lightning.run.arguments import (
    content_of,
    default_directory,
    values_of,
    with_choices_first,
    with_recipe,
    with_run_config,
    with_underscores,
)
from tests.command_line import QUICKSTART

VERBS = ("fit", "test")
DEFAULT = ["--config", str(recipe_file("isvit"))]
REPQ = str(recipe_file("repq"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "quantized.safetensors").write_bytes(b"")
    (tmp_path / "config.yaml").write_text("model: {}")
    return tmp_path


@pytest.mark.parametrize("form", ["apart", "joined", "file"])
def test_the_configuration_of_a_run_comes_before_all_others(form: str, run: Path) -> None:
    given = str(run / "quantized.safetensors") if form == "file" else str(run)
    checkpoint = [f"--ckpt_path={given}"] if form == "joined" else ["--ckpt_path", given]
    expanded = with_run_config(["test", "--config", "a.yaml", *checkpoint, "--data.batch_size", "3"])
    inherited = ["--config", str(run / "config.yaml")]
    rest = ["--config", "a.yaml", "--ckpt_path", str(run), "--data.batch_size", "3"]
    assert expanded == ["test", *inherited, *rest]


@pytest.mark.parametrize("content", ["", "model: [", "[1]"])
def test_a_damaged_configuration_of_a_run_is_named(content: str, run: Path) -> None:
    (run / "config.yaml").write_text(content)
    with pytest.raises(
        IsvitError, match=rf"{run}/config\.yaml is no configuration, expected the one that isvit fit wrote"
    ):
        with_run_config(["test", "--ckpt_path", str(run)])


def test_a_run_without_a_configuration_puts_nothing_in_front(run: Path) -> None:
    (run / "config.yaml").unlink()
    assert with_run_config(["test", "--ckpt_path", str(run)]) == ["test", "--ckpt_path", str(run)]


def test_without_a_run_nothing_changes() -> None:
    for arguments in ([], ["fit"], ["fit", "--config=a.yaml"], ["test", "--ckpt_path"]):
        assert with_run_config(arguments) == arguments


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"holds no finished run; expected .*--ckpt_path"):
        with_run_config(["test", "--ckpt_path", str(tmp_path / "absent")])


def test_the_default_recipe_comes_in_front_behind_the_verb() -> None:
    assert with_recipe(["fit", "--config", QUICKSTART], VERBS) == ["fit", *DEFAULT, "--config", QUICKSTART]
    assert with_recipe(["--config", QUICKSTART], VERBS) == [*DEFAULT, "--config", QUICKSTART]
    assert with_recipe(["inspect", "--seed", "1"], VERBS) == [*DEFAULT, "inspect", "--seed", "1"]
    assert with_recipe([], VERBS) == DEFAULT


@pytest.mark.parametrize("form", [["--config", REPQ], [f"--config={REPQ}"], ["-c", REPQ], [f"-c={REPQ}"]])
def test_a_whole_recipe_stands_alone(form: list[str]) -> None:
    arguments = ["fit", *form, "--config", QUICKSTART]
    assert with_recipe(arguments, VERBS) == arguments


@pytest.mark.parametrize("option", ["--config", "-c"])
def test_a_recipe_of_a_file_is_that_recipe(option: str) -> None:
    """Nothing of the default one is mixed in."""
    assert IsvitCLI([option, REPQ, option, QUICKSTART], run=False).model.recipe == read_recipe("repq")
    assert IsvitCLI([option, QUICKSTART], run=False).model.recipe == read_recipe("isvit")


@pytest.mark.parametrize("option", ["--config", "-c"])
def test_two_whole_recipes_are_refused(option: str) -> None:
    """One behind the other would be mixed."""
    arguments = [option, str(recipe_file("isvit")), option, QUICKSTART, option, REPQ]
    with pytest.raises(IsvitError, match=r"Two configurations hold a whole recipe, .*isvit.yaml and .*repq.yaml, exp"):
        with_recipe(["fit", *arguments], VERBS)


def test_a_part_of_a_recipe_changes_the_default_one(tmp_path: Path) -> None:
    part = tmp_path / "part.yaml"
    part.write_text("model: {recipe: {range_images: 3}}")
    arguments = ["fit", "--config", str(part)]
    assert with_recipe(arguments, VERBS) == ["fit", *DEFAULT, "--config", str(part)]


def test_files_that_cannot_be_read_are_left_to_the_parser(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("model: [")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (broken, binary, tmp_path, tmp_path / "absent.yaml"):
        assert content_of(path) is None
        assert with_recipe(["fit", "--config", str(path)], VERBS) == ["fit", *DEFAULT, "--config", str(path)]
    assert content_of(Path(QUICKSTART))["model"]["bits"] == {"weight": 3, "activation": 3}


def test_values_are_found_in_either_form_and_in_order() -> None:
    arguments = ["fit", "--config", "a", "--config=b=c", "--program", "d", "--other=e", "--config"]
    assert values_of("--config", arguments) == ["a", "b=c"]
    assert values_of("--program", arguments) == ["d"]
    assert values_of("--ckpt_path", arguments) == []


def test_the_directory_is_named_by_the_files_but_the_default_recipe() -> None:
    recipe = recipe_file("isvit")
    assert default_directory([recipe, "configs/quickstart.yaml"]) == Path("runs/quickstart")
    assert default_directory(["a/vit.yaml", "b/w4a4.yaml", REPQ]) == Path("runs/vit-w4a4-repq")
    assert default_directory([str(recipe)]) == default_directory([]) == Path("runs/default")


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("fit --data.workers 0 --data A --seed 1", "fit --data A --data.workers 0 --seed 1"),
        ("fit --data.workers=0 --x 1 --data=A --seed 1", "fit --x 1 --data=A --data.workers=0 --seed 1"),
        ("fit --data.workers 0 --data.x 1 --data A --data B", "fit --data A --data.workers 0 --data.x 1 --data B"),
        ("fit --data A --data.workers 0 --data B", "fit --data A --data.workers 0 --data B"),
        ("fit --data.workers 0 --other 1", "fit --data.workers 0 --other 1"),
        ("fit --data.flag --data A", "fit --data A --data.flag"),
        ("--trainer.logger.name x --trainer.logger L", "--trainer.logger L --trainer.logger.name x"),
        ("", ""),
    ],
)
def test_what_chooses_a_class_comes_before_its_options(given: str, ordered: str) -> None:
    assert with_choices_first(given.split()) == ordered.split()


def test_a_configuration_chooses_too() -> None:
    for form in (["--config", QUICKSTART], [f"--config={QUICKSTART}"], ["-c", QUICKSTART]):
        assert with_choices_first(["fit", "--data.workers", "0", *form]) == ["fit", *form, "--data.workers", "0"]
    other = ["fit", "--data.workers", "0", "--config", REPQ]
    assert with_choices_first(other) == other


def test_dashes_in_the_name_of_an_option_are_underscores() -> None:
    given = ["compare", "--choose-on", "-4", "--choose-on=a-b", "--data.some-key=1", "a-b", "--", "--x", "-c", "--a--b"]
    assert with_underscores(given) == ["compare", "--choose_on", "-4", "--choose_on=a-b", *given[4:]]
