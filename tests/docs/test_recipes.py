"""``docs/recipes.md``: its example runs as it stands there, and all that it names exists and is all that there is."""

import csv
import dataclasses
import importlib
import inspect
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import isvit_lightning
from isvit_lightning import search, stages, transforms
from isvit_lightning.embedded.digits import digit_images
from isvit_lightning.embedded.networks import embedded_network
from isvit_lightning.networks import quantizers
from isvit_lightning.program import main
from isvit_lightning.quantizers import Format, PerTensor, Quantizer, Search, Spec, formats
from isvit_lightning.recipe import Choice, Placement, Recipe, read_recipe, recipe_file, recipe_names
from isvit_lightning.run.verbs import Verbs
from isvit_lightning.search import Percentiles
from tests.command_line import QUICKSTART, SMALL
from tests.docs.commands import ROOT, Idle, blocks, commands, options
from tests.helpers import GRANULARITIES
from tests.quantizers.formats import cases
from tests.quantizers.formats import test_conformance as codes
from tests.quantizers.formats import test_conformance_gradients as gradients
from tests.quantizers.formats import test_conformance_state as state

PAGE = (ROOT / "docs" / "recipes.md").read_text()
FILES = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
SHORT = "iterations=2, batch_size=8, accelerator='cpu'"
GELU = torch.nn.functional.gelu


def table(heading: str) -> list[list[str]]:
    """Rows of the first table behind a heading, without its head."""
    _, _, rest = PAGE.partition(f"{heading}\n")
    rows = re.search(r"^\|.*\n\|---.*\n((?:\|.*\n)+)", rest, re.MULTILINE)
    assert rows is not None, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.group(1).splitlines()]


def names(heading: str, column: int = 0) -> list[str]:
    """What a column of a table names as code."""
    return [name for row in table(heading) for name in re.findall(r"`([^`]+)`", row[column])]


def chosen(package: Any, kind: type) -> set[str]:
    """Names of the choices of a kind that a package offers."""
    found = {name for name in package.__all__ if inspect.isclass(getattr(package, name))}
    return {name for name in found if issubclass(getattr(package, name), kind) and getattr(package, name) is not kind}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page, in a folder that Python looks into."""
    place = tmp_path_factory.mktemp("example")
    for name, text in FILES.items():
        (place / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(place))
        patch.chdir(place)
        yield place
    sys.modules.pop("power_format", None)
    read_recipe.cache_clear()


@pytest.fixture(scope="module")
def power(folder: Path) -> type[Format]:
    """The format of the page."""
    return importlib.import_module("power_format").Power


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return digit_images("train")[0][:16]


@pytest.fixture(scope="module")
def example(folder: Path, power: type[Format], images: torch.Tensor) -> dict[str, Any]:
    """The names of the last Python example, which calibrates with the recipe of the page."""
    code = blocks(PAGE, "python")[-1]
    assert 'recipe="power.yaml"' in code
    known = {"network": embedded_network("vit_digits"), "images": images}
    exec(compile(code.replace('"power.yaml")', f'"power.yaml", {SHORT})'), "recipes.md", "exec"), known)
    return known


# What the page names --------------------------------------------------------------------------------------------------


def test_all_recipes_are_listed_with_the_papers_of_their_files() -> None:
    rows = {row[0].strip("`"): row[2] for row in table("## The recipes that ship")}
    assert sorted(rows) == recipe_names()
    for name, paper in rows.items():
        numbers = set(re.findall(r"\d{4}\.\d{5}", paper))
        text = recipe_file(name).read_text()
        # Papers without a number are named by where they are from.
        assert len(numbers) == (name not in {"round_to_nearest", "lsvit", "glfq"})
        assert numbers or name == "round_to_nearest" or paper.split(",")[0] in text
        # Recipes beside the first one of a method refer to that.
        assert all(number in text for number in numbers) or name.startswith("isvit_")


def test_all_parts_of_a_recipe_are_told() -> None:
    parts = {entry.name for entry in dataclasses.fields(Recipe)}
    assert all(f"`{part}`" in PAGE for part in parts)
    assert set(names("# Write your own method")) == parts - {"name", "range_images", "reconstruct"}


def test_all_roles_are_told_with_what_stands_in_front_of_them() -> None:
    placement = Placement()
    assert set(names("### Roles")) == {entry.name for entry in dataclasses.fields(placement)} - {"others"}
    for row in table("### Roles"):
        for name in re.findall(r"`(\w+)`", row[0]):
            choice = getattr(placement, name)
            assert (choice.format is None) is row[2].startswith("nothing")
            assert (choice.granularity == "channel") is row[2].endswith("each output channel")


def test_all_choices_are_told() -> None:
    assert set(names("A role has four fields:")) == {entry.name for entry in dataclasses.fields(Choice)}
    granularity = Choice.__annotations__["granularity"]
    assert tuple(names("### Granularities")) == granularity.__args__
    assert set(names("### Formats")) == chosen(formats, Format)
    assert set(names("### Searches")) == {entry.name for entry in dataclasses.fields(Percentiles)}
    assert {name for name in chosen(search, Search) if f"\n`{name}` " in PAGE} == chosen(search, Search)
    for kind in (search.OutputError, search.Beam):
        told = re.search(rf"\n`{kind.__name__}` [\s\S]*?\n((?:\|.*\n)+)", PAGE)
        assert told is not None
        fields = re.findall(r"^\| `(\w+)` ", told.group(1), re.MULTILINE)
        assert set(fields) == {entry.name for entry in dataclasses.fields(kind)}
    assert all(f"`{name}`" in PAGE for name in chosen(transforms, transforms.Transform))
    assert set(names("## Steps")) - {"of: activations", "of: weights"} >= chosen(stages, stages.Step)
    pieces = chosen(stages, stages.Loss) | chosen(stages, stages.Trainables)
    assert pieces <= set(names("A `Tune` is made of pieces:", 2))
    assert set(names("### Curvature")) == chosen(stages, stages.Estimator)
    curvature = {entry.name for entry in dataclasses.fields(stages.CurvatureError)}
    assert all(f"`{option}`" in PAGE for option in curvature)
    tune = {entry.name for entry in dataclasses.fields(stages.Tune)} - {"name"}
    assert set(names("A `Tune` is made of pieces:")) == tune
    assert {entry.name for entry in dataclasses.fields(stages.Inputs)} <= set(names("A `Tune` is made of pieces:", 1))


def test_options_of_formats_exist() -> None:
    for row in table("### Formats"):
        form = getattr(formats, row[0].strip("`"))
        assert set(re.findall(r"`(\w+)`", row[2])) == {entry.name for entry in dataclasses.fields(form)}


def test_granularities_fit_the_roles_that_are_named(images: torch.Tensor) -> None:
    rows = dict(zip(names("### Granularities"), table("### Granularities"), strict=True))
    for role in re.findall(r"`(\w+)`", rows["head"][2]):
        placement = dataclasses.replace(Placement(), **{role: Choice(granularity="head")})
        Recipe(placement=placement, steps=read_recipe("repq").steps).open(
            embedded_network("vit_digits"), isvit_lightning.Bits()
        )
    placement = dataclasses.replace(Placement(), attn_prob=Choice(granularity="channel"))
    with pytest.raises(isvit_lightning.IsvitError, match="no grid for each channel"):
        Recipe(placement=placement, steps=read_recipe("repq").steps).open(
            embedded_network("vit_digits"), isvit_lightning.Bits()
        )


def test_options_of_estimators_exist() -> None:
    for row in table("### Curvature"):
        estimator = getattr(stages, row[0].strip("`"))
        fields = {entry.name for entry in dataclasses.fields(estimator)}
        assert set(re.findall(r"`(\w+)`", row[2])) - {"ones", "signs"} == fields


# Commands and options -------------------------------------------------------------------------------------------------


def test_every_command_is_accepted(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    idle = Idle(monkeypatch, folder)
    unchanged = idle.give("isvit fit --config configs/quickstart.yaml").model.recipe
    assert unchanged == read_recipe("isvit")
    for command in commands(PAGE):
        recipe = idle.give(command).model.recipe
        assert "--model.recipe." not in command or recipe != unchanged, command
    assert len(commands(PAGE)) == 20


def test_every_option_of_the_text_exists() -> None:
    known = {**inspect.signature(Verbs.fit).parameters, **inspect.signature(Verbs.compare).parameters}
    spelled = options(PAGE)
    assert {"--methods", "--bits", "--baselines", "--choose_on 64"} <= set(spelled)
    assert [option for option in spelled if option.split()[0].removeprefix("--") not in known] == []


def test_recipes_of_python_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: torch.Tensor) -> None:
    monkeypatch.chdir(tmp_path)
    code = blocks(PAGE, "python")[0]
    code = re.sub(r'(recipe=(?:"repq"|recipe))\)', rf"\1, {SHORT})", code)
    assert code.count(SHORT) == 2
    known: dict[str, Any] = {"network": embedded_network("vit_digits"), "images": images}
    exec(compile(code, "recipes.md", "exec"), known)
    assert known["recipe"].steps[0].inputs.read == "float"
    assert known["quantized"](images).isfinite().all()


# The example ----------------------------------------------------------------------------------------------------------


def test_the_example_is_short() -> None:
    assert set(FILES) == {"power_format.py", "power.yaml"}
    assert len(FILES["power_format.py"].splitlines()) < 50


def test_the_recipe_names_the_format(power: type[Format], folder: Path) -> None:
    recipe = read_recipe(str(folder / "power.yaml"))
    assert recipe.name == "power"
    assert recipe.placement.attn_prob.format == recipe.placement.gelu_out.format == power()
    assert [step.name for step in recipe.steps] == ["activations", "fold", "weights"]


def test_the_calibrated_network_has_the_format(
    example: dict[str, Any], power: type[Format], images: torch.Tensor
) -> None:
    found = [one for one in quantizers(example["quantized"].model).values() if isinstance(one.format, power)]
    assert {one.role.name for one in found} == {"attn_prob", "gelu_out"}
    for quantizer in found:
        assert quantizer.n_codes == 16
        assert quantizer.table().shape[0] == 16
        samples = (torch.randn(2, 3, 17, 17) * 3).softmax(dim=-1)
        samples = samples if quantizer.role.name == "attn_prob" else GELU(samples * 4 - 1)
        codes, values = quantizer.encode(samples), quantizer(samples)
        assert 0 <= int(codes.min()) < int(codes.max()) < 16
        assert torch.equal(quantizer.decode(codes), values)
        assert torch.equal(quantizer(values), values)
    # It is a choice that counts: the exponents are not all 1.
    assert max(float(one.power.max()) for one in found) > 1
    wanted = embedded_network("vit_digits").eval()(images).argmax(dim=1)
    assert float((example["quantized"](images).argmax(dim=1) == wanted).float().mean()) > 0.8


def test_the_packed_file_gives_the_same_network(example: dict[str, Any], images: torch.Tensor) -> None:
    quantized, again = example["quantized"], example["again"]
    assert torch.equal(quantized(images), again(images))
    made, read = quantizers(quantized.model), quantizers(again.model)
    assert {path: one.spec for path, one in made.items()} == {path: one.spec for path, one in read.items()}
    assert all(torch.equal(a, b) for path, one in made.items() for a, b in zip(one.grid, read[path].grid, strict=True))
    for path, one in made.items():
        if one.role.weight:
            layers = [network.model.get_submodule(path.rpartition(".")[0]) for network in (quantized, again)]
            assert torch.equal(one.encode(layers[0].weight), read[path].encode(layers[1].weight))


@dataclasses.dataclass(frozen=True)
class SlowPower:
    """The formula of the page, one number at a time."""

    scale: float
    power: float
    offset: float

    def code(self, x: float) -> float:
        ratio = (x + self.offset) / self.scale
        return round(math.copysign(abs(ratio) ** (1 / self.power), ratio))

    def value(self, code: int) -> float:
        return self.scale * code**self.power - self.offset

    def slope(self, x: float, value: float) -> float:
        return (max(0.0, value + self.offset) / abs(x + self.offset)) ** (1 - 1 / self.power)


@pytest.fixture(params=["real", "probabilities", "gelu"])
def case(request: pytest.FixtureRequest, power: type[Format], monkeypatch: pytest.MonkeyPatch) -> str:
    """The format among those that have to conform, on values of one kind; the name of the case."""
    samples = getattr(cases, request.param)
    added = cases.Case(power(), Percentiles((0.999, 1.0)), samples, SlowPower, fractional=True)
    monkeypatch.setitem(cases.CASES, "power", added)
    return "power"


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_format_has_2_to_the_b_codes(case: str, bits: int) -> None:
    codes.test_b_bits_are_2_to_the_b_codes(case, bits)
    for granularity in GRANULARITIES:
        codes.test_codes_that_share_no_value_are_found_again(case, bits, granularity)
        codes.test_table_lists_the_value_of_each_code(case, bits, granularity)


def test_a_second_pass_changes_nothing(case: str) -> None:
    codes.test_decode_of_encode_is_forward_and_a_second_pass_changes_nothing(case)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_format_round_trips(case: str, granularity: str) -> None:
    state.test_grid_numbers_are_buffers_that_round_trip(case, granularity)
    state.test_a_file_of_plain_values_and_numbers_makes_it_again(case, granularity)
    codes.test_affine_exponents_and_integers_say_the_same_as_the_table(case, granularity)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_format_is_its_formula(case: str, bits: int) -> None:
    codes.test_codes_and_values_against_pure_python(case, bits, "both")
    gradients.test_gradient_has_its_closed_form(case, bits, "per_tensor")


def test_gradients_and_strides(case: str) -> None:
    gradients.test_gradient_is_the_slope_inside_and_zero_outside(case)
    codes.test_strides_do_not_matter_and_tensors_are_left_alone(case)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-30, 5e4])
def test_a_constant_has_a_finite_grid(case: str, value: float) -> None:
    state.test_a_constant_has_a_finite_grid(case, "per_tensor", value)


def test_values_are_finer_near_the_lower_end(power: type[Format]) -> None:
    quantizer = Quantizer(Spec(power(), 3, PerTensor()), Percentiles((1.0,)))
    quantizer.calibrate((torch.randn(50, 50) * 4).softmax(dim=-1))
    distances = quantizer.table().diff()
    assert bool((distances.diff() > 0).all())


# The example as a run -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_arguments")
def test_the_example_runs_on_the_quickstart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "power.yaml", "--config", QUICKSTART, "--baselines", "[]"]
    run = ["--trainer.default_root_dir", str(folder / "run")]
    assert main(["fit", *arguments, *SMALL, *run]) == 0
    printed = capsys.readouterr().out
    assert all(row in printed for row in ("float", "activations", "power"))
    assert main(["test", "--ckpt_path", str(folder / "run")]) == 0


@pytest.mark.usefixtures("own_arguments")
def test_columns_of_a_comparison_are_told_and_a_failure_is_a_row(folder: Path) -> None:
    broken = yaml.safe_load(FILES["power.yaml"])
    broken["model"]["recipe"]["placement"]["weight"] = {"format": "power_format.Power"}
    broken["model"]["recipe"]["steps"][-1]["init_args"]["trainables"] = {"class_path": "AdaRound"}
    (folder / "broken.yaml").write_text(yaml.safe_dump(broken))
    what = ["--methods", "broken.yaml,power.yaml", "--bits", "w4a4", "--seeds", "0"]
    place = folder / "compared"
    command = ["compare", "--config", QUICKSTART, *what, *SMALL, "--trainer.default_root_dir", str(place)]
    assert main(command) == 0
    assert {path.name for path in place.glob("comparison.*")} == set(re.findall(r"`(comparison\.\w+)`", PAGE))
    with (place / "comparison.csv").open() as file:
        header, *rows = list(csv.reader(file))
    told = [title.strip() for row in table("## Comparing recipes") for title in row[0].split(",")]
    assert header == ["recipe", "bits", *told]
    assert [row[0] for row in rows] == ["float", "broken", "power"]
    assert rows[1][2].startswith("failed: AdaRound")
    assert {path.stem for path in (place / "cells").glob("*.json")} == {"broken-w4a4-seed0", "power-w4a4-seed0"}
