"""The steps in order, and what remains of them where some are left out."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from isvit_lightning.networks import quantizers, require_calibrated
from isvit_lightning.quantizers import Role
from isvit_lightning.recipe import Bits, Choice, Recipe, read_recipe
from isvit_lightning.run.pipeline import Calibration, calibrate_network
from isvit_lightning.stages import Fit, Ranges, Schedule, Step, UnitStage, Work
from tests.helpers import DEFAULT_RECIPE, image_batch, quantized_network, tiny_swin, tiny_vit
from tests.stages.fitting import changed, run, snapshot

NETWORK = pytest.mark.parametrize(("build", "size"), [(tiny_vit, 16), (tiny_swin, 32)], ids=["vit", "swin"])
Build = Callable[[], nn.Module]
STAGE1, FOLD, STAGE3 = DEFAULT_RECIPE.steps
WEIGHTS = Ranges("weights", of="weights")
PER_TENSOR = replace(DEFAULT_RECIPE.placement, qkv_in=Choice(), fc1_in=Choice())


def of_steps(*steps: Step, recipe: Recipe = DEFAULT_RECIPE) -> Recipe:
    return replace(recipe, steps=list(steps))


NO_TUNING = of_steps(Ranges(), FOLD, WEIGHTS)


def calibration(model: nn.Module, size: int, recipe: Recipe = DEFAULT_RECIPE, bits: int = 3) -> Calibration:
    torch.manual_seed(5)
    return Calibration(model, image_batch(size, 6), Bits(bits, bits), recipe, Schedule(1, 4))


def fit(stage: UnitStage) -> None:
    run(stage)


class Looks:
    """Looks at the networks behind some steps; keeps their names and what ``look`` makes of the networks."""

    def __init__(self, *names: str, look: Callable[[nn.Module], object] = snapshot) -> None:
        self.names, self.look = names, look
        self.seen: dict[str, object] = {}

    def wants(self, step: Step) -> bool:
        return step.name in self.names

    def show(self, step: Step, model: nn.Module) -> None:
        self.seen[step.name] = self.look(model)


@NETWORK
def test_steps_are_taken_in_order_and_everything_ends_calibrated(build: Build, size: int) -> None:
    names: list[str] = []

    def listed_fit(stage: UnitStage) -> None:
        names.append(stage.name)
        run(stage)

    def after_stage1(network: nn.Module) -> list[str]:
        assert not any(quantizer.enabled for quantizer in quantizers(network).values() if quantizer.role.weight)
        require_calibrated(network)
        return list(names)

    looks = Looks("stage1", look=after_stage1)
    quantized = calibrate_network(calibration(build(), size), listed_fit, looks)
    assert names == ["stage1", "stage2", "stage3"]
    assert looks.seen == {"stage1": ["stage1"]}
    assert all(quantizer.enabled and quantizer.calibrated for quantizer in quantizers(quantized.model).values())


@NETWORK
def test_the_values_of_the_network_are_left_untouched(build: Build, size: int) -> None:
    model = build()
    before, images = snapshot(model), image_batch(size)
    logits = model(images)
    calibrate_network(calibration(model, size), fit)
    assert not changed(before, snapshot(model))
    assert torch.equal(model(images), logits)


def test_mode_and_gradients_of_the_network_are_left_untouched() -> None:
    model = tiny_vit().train().requires_grad_(True)
    calibrate_network(calibration(model, 16), fit)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())

    def fail(stage: UnitStage) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        calibrate_network(calibration(model, 16), fail)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


RECIPES = {
    "no_stage1": (of_steps(Ranges(), FOLD, STAGE3), ["stage2", "stage3"]),
    "no_stage3": (of_steps(STAGE1, FOLD, WEIGHTS), ["stage1", "stage2"]),
    "no_tuning": (NO_TUNING, ["stage2"]),
    "no_stage2": (replace(of_steps(STAGE1, STAGE3), placement=PER_TENSOR), ["stage1", "stage3"]),
    "round_to_nearest": (read_recipe("round_to_nearest"), []),
    "repq": (read_recipe("repq"), ["fold"]),
}


@pytest.mark.parametrize("name", RECIPES)
@NETWORK
def test_recipes_that_leave_steps_out(build: Build, size: int, name: str) -> None:
    recipe, names = RECIPES[name]
    given, fitted = calibration(build(), size, recipe), list[str]()

    def listed_fit(stage: UnitStage) -> None:
        fitted.append(stage.name)
        run(stage)

    looks = Looks(recipe.steps[0].name, "stranger", look=require_calibrated)
    quantized = calibrate_network(given, listed_fit, looks)
    assert fitted == names
    assert list(looks.seen) == [recipe.steps[0].name]
    require_calibrated(quantized.model)
    assert all(quantizer.enabled for quantizer in quantizers(quantized.model).values())
    assert bool(torch.isfinite(quantized.model(given.images)).all())


@pytest.mark.parametrize("name", ["round_to_nearest", "repq", "no_tuning"])
@NETWORK
def test_without_tuning_the_result_is_that_of_ranges_and_fold_by_hand(build: Build, size: int, name: str) -> None:
    recipe, _ = RECIPES[name]
    given = calibration(build(), size, recipe)
    by_hand = quantized_network(given.model, given.images, given.bits, recipe)
    found = calibrate_network(given, fit)
    assert by_hand.model.state_dict().keys() == found.model.state_dict().keys()
    assert not changed(snapshot(by_hand.model), snapshot(found.model))


def test_without_tuning_and_fold_the_weights_are_kept() -> None:
    model = tiny_vit()
    network = calibrate_network(calibration(model, 16, read_recipe("round_to_nearest")), fit).model
    for name, parameter in model.named_parameters():
        assert torch.equal(network.get_parameter(name), parameter)
    require_calibrated(network)


@pytest.mark.parametrize("bits", [3, 4])
def test_published_arithmetic_spends_one_code_more_on_softmax(bits: int) -> None:
    network = calibrate_network(calibration(tiny_vit(), 16, read_recipe("isvit_published"), bits), fit).model
    for quantizer in quantizers(network).values():
        assert quantizer.n_codes == 2**bits + (quantizer.role == Role.ATTN_PROB)
    fractions = [
        quantizer.zero_point
        for quantizer in quantizers(network).values()
        if quantizer.role in (Role.QKV_IN, Role.FC1_IN)
    ]
    assert any(not torch.equal(zero_point, zero_point.round()) for zero_point in fractions)


def test_ranges_are_chosen_on_the_range_images_alone() -> None:
    model = tiny_vit()
    given = calibration(model, 16, replace(read_recipe("round_to_nearest"), range_images=2))
    few = calibrate_network(given, fit).model
    alone = calibrate_network(replace(given, images=given.images[:2]), fit).model
    every = calibrate_network(replace(given, recipe=read_recipe("round_to_nearest")), fit).model
    assert not changed(snapshot(few), snapshot(alone))
    assert changed(snapshot(few), snapshot(every))


@dataclass(frozen=True)
class Noted(Step):
    """A step that keeps what it is taken on."""

    name: str
    works: list[Work]

    @property
    def quantizes_weights(self) -> bool:
        return True

    def take(self, work: Work, fit: Fit) -> None:
        self.works.append(work)


def test_each_step_is_told_its_place_and_the_choices_of_the_run() -> None:
    works: list[Work] = []
    recipe = replace(of_steps(Noted("a", works), Noted("b", works), Noted("c", works)), range_images=3)
    given = replace(calibration(tiny_vit(), 16, recipe), seed=11)
    result = calibrate_network(given, fit)
    assert [work.number for work in works] == [1, 2, 3]
    for work in works:
        assert (work.seed, work.range_images, work.schedule) == (11, 3, given.schedule)
        assert work.images is given.images
        assert work.quantized is result
        assert work.target.model is given.model
    assert list(given.seconds) == ["a", "b", "c"]
    assert all(seconds > 0 for seconds in given.seconds.values())


def test_a_network_is_shown_before_the_next_step_changes_it() -> None:
    looks = Looks("ranges", "stage2", "weights", look=lambda model: model.blocks[0].attn.qkv.weight.clone())
    model = tiny_vit()
    calibrate_network(calibration(model, 16, NO_TUNING), fit, looks)
    assert list(looks.seen) == ["ranges", "stage2", "weights"]
    before, folded, rounded = looks.seen.values()
    assert torch.equal(before, model.blocks[0].attn.qkv.weight)  # type: ignore[arg-type]
    assert not torch.equal(before, folded)  # type: ignore[arg-type]
    assert torch.equal(folded, rounded)  # type: ignore[arg-type]
