"""A recipe is a list of steps that fit together, and changes by name; everything else is refused in a sentence."""

import dataclasses
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isvit_lightning
from isvit_lightning.errors import IsvitError
from isvit_lightning.networks import quantizers
from isvit_lightning.recipe import Bits, Placement, Recipe, Variant, read_recipe, recipe_names
from isvit_lightning.stages import Fold, Inputs, NormalizedError, NoWeights, Ranges, SquaredError, StraightThrough, Tune
from tests.helpers import image_batch, tiny_vit

NETWORK = tiny_vit(depth=1)
WEIGHTS = Ranges("weights", of="weights")
STEPS = [
    Tune("stage1", weights=False, trainables=StraightThrough(1e-4, relative=False)),
    Fold("stage2"),
    Tune("stage3", inputs=Inputs("mixed"), loss=SquaredError(), trainables=NoWeights()),
    WEIGHTS,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
LIKELY: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "stage1": {
        "weights": st.booleans(),
        "activations": st.booleans(),
        "range_learning_rate": st.floats(-1, 1) | st.none(),
        "recalibrate": st.sampled_from(["never", "stage", "unit", "always"]),
        "iterations": st.integers(-1, 9) | st.none(),
        "inputs": st.fixed_dictionaries(
            {},
            optional={
                "read": st.sampled_from(["float", "quantized", "mixed", "neither"]),
                "probability": st.floats(-1, 2) | st.none(),
                "drop": st.floats(-1, 2),
            },
        ),
        "trainables": st.fixed_dictionaries(
            {}, optional={"rate": st.floats() | st.none(), "relative": st.booleans() | st.floats()}
        ),
    },
    "stage2": {"statistic": st.sampled_from(["mean", "median", "mode"]), "round_zero_point": st.booleans()},
    "weights": {"of": st.sampled_from(["weights", "activations", "neither"])},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe("tested", steps=list(STEPS), changes=changes)


def some_changes() -> st.SearchStrategy[dict[str, Any]]:
    """Changes of steps: likely values and arbitrary ones, and now and then a name that does not exist."""
    steps = {name: st.fixed_dictionaries({}, optional=known) for name, known in LIKELY.items()}
    likely = st.fixed_dictionaries({}, optional=steps)
    names = st.sampled_from([*LIKELY, "stage3", "stranger"])
    fields = st.sampled_from([*(name for known in LIKELY.values() for name in known), "loss", "name", "stranger"])
    odd = st.tuples(names, fields, JSON).map(lambda drawn: {drawn[0]: {drawn[1]: drawn[2]}})
    return st.one_of(likely, odd)


def require_choices(step: Any) -> None:
    """Every field that names one of some words holds one of them, every rate is a number."""
    for name, kind in get_type_hints(type(step)).items():
        value = getattr(step, name)
        if get_origin(kind) is Literal:
            assert value in get_args(kind)
        if kind is float:
            assert isinstance(value, int | float)
        if dataclasses.is_dataclass(value):
            require_choices(value)


def test_changes_are_made_or_refused_in_a_sentence() -> None:
    made = 0

    @given(some_changes())
    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    def check(changes: dict[str, Any]) -> None:
        nonlocal made
        try:
            changed = recipe(**changes)
        except IsvitError as error:
            assert ", expected " in str(error)
            assert str(error).endswith(".")
            assert "\n" not in str(error)
            return
        made += bool(changes)
        assert Recipe("tested", steps=changed.steps) == changed
        for step in changed.steps:
            for name, value in changes.get(step.name, {}).items():
                section = getattr(step, name)
                held = {key: getattr(section, key) for key in value} if isinstance(value, dict) else section
                assert held == value
            require_choices(step)
        changed.open(NETWORK, Bits())

    check()
    assert made > 20


@pytest.mark.parametrize("recipe", [read_recipe(name) for name in recipe_names()], ids=recipe_names())
def test_the_named_recipes_quantize(recipe: Recipe) -> None:
    images = image_batch(16, 8)
    network = isvit_lightning.calibrate(
        tiny_vit(depth=1), images, Bits(2, 8), recipe, accelerator="cpu", iterations=1, batch_size=4
    )
    assert network(images).isfinite().all()


def test_changes_go_to_their_steps_and_sections() -> None:
    changed = recipe(
        stage1={"inputs": {"read": "float", "drop": 0.5}, "range_learning_rate": 0, "iterations": 7},
        stage2={"statistic": "median"},
        stage3={"recalibrate": "unit"},
    )
    stage1, stage2, stage3, _ = STEPS
    assert changed.steps == [
        replace(stage1, inputs=Inputs("float", drop=0.5), range_learning_rate=0, iterations=7),
        replace(stage2, statistic="median"),
        replace(stage3, recalibrate="unit"),
        WEIGHTS,
    ]
    assert changed.steps[0].trainables == StraightThrough(1e-4, relative=False)  # type: ignore[attr-defined]


def test_equal_recipes_are_equal_whatever_said_so() -> None:
    said = recipe(stage2={"statistic": "median"})
    assert said.changes == {}
    assert said == Recipe("tested", steps=[STEPS[0], Fold("stage2", "median"), *STEPS[2:]])
    assert said != recipe()
    assert replace(said, changes={"stage2": {"statistic": "mean"}}) == recipe()
    assert recipe(stage1={"trainables": {"relative": True}}).steps[0] == replace(
        STEPS[0], trainables=StraightThrough(1e-4)
    )


def test_changes_may_be_for_the_steps_of_another_recipe() -> None:
    """As in a configuration that is used with several of them."""
    assert recipe(fold={"statistic": "median"}, ranges={"nonsense": 1}) == recipe()
    with pytest.raises(IsvitError, match="changes names the step stage4, expected one of stage1, stage2"):
        recipe(fold={"statistic": "median"}, stage4={})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stage4": {}}, r"changes names the step stage4, expected one of stage1, stage2, stage3, weights: correct"),
        ({"stage2": {"statistics": "mean"}}, r"changes\.stage2 names the field statistics, expected one of round_zero"),
        ({"stage2": {"name": "fold"}}, r"changes\.stage2 names the field name, expected one of round_zero_point"),
        ({"stage1": {"inputs": {"reads": "float"}}}, r"changes\.stage1\.inputs names the field reads, expected one of"),
        ({"stage1": {"inputs": "float"}}, r"changes\.stage1\.inputs is 'float', expected a value such as Inputs"),
        ({"stage1": {"weights": 1}}, r"changes\.stage1\.weights is 1, expected a value such as False"),
        ({"stage1": {"range_learning_rate": True}}, r"stage1\.range_learning_rate is True, expected a value such as"),
        ({"stage1": {"range_learning_rate": "slow"}}, r"stage1\.range_learning_rate is 'slow', expected a value"),
        ({"stage1": {"range_learning_rate": -0.01}}, r"range_learning_rate of -0\.01, expected 0 or a positive one"),
        (
            {"stage1": {"range_learning_rate": float("inf")}},
            r"stage1\.range_learning_rate is inf, expected a value such as 0\.01",
        ),
        ({"stage1": {"range_learning_rate": None}}, r"range_learning_rate is None, expected "),
        ({"stage1": {"iterations": 0}}, r"stage1 has 0 iterations, expected 1 or more"),
        ({"stage1": {"iterations": 2.5}}, r"iterations is 2\.5, expected "),
        ({"stage1": {"recalibrate": 3}}, r"changes\.stage1\.recalibrate is 3, expected one of never, stage, unit"),
        ({"stage1": {"recalibrate": "always"}}, r"recalibrate is 'always', expected one of never, stage, unit: "),
        ({"stage1": {"activations": False}}, r"stage1 quantizes nothing, expected weights or activations"),
        ({"stage1": {"inputs": {"drop": 1}}}, r"probability 0\.5 and drop 1, expected shares between 0 and 1"),
        ({"stage1": {"inputs": {"probability": 1.0}}}, r"probability 1\.0 and drop 0\.0, expected shares"),
        ({"stage1": {"inputs": {"probability": None}}}, r"probability is None, expected "),
        (
            {"stage1": {"inputs": {"read": "both"}}},
            r"inputs\.read is 'both', expected one of float, quantized, mixed: ",
        ),
        ({"stage1": {"trainables": {"rate": float("nan")}}}, r"trainables\.rate is nan, expected a value"),
        ({"stage1": {"trainables": {"rate": 0.0}}}, r"a rate of 0\.0, expected a positive one"),
        ({"stage1": {"trainables": {"rate": "slow"}}}, r"trainables\.rate is 'slow', expected a"),
        ({"stage1": {"trainables": {"rate": None}}}, r"trainables\.rate is None, expected "),
        (
            {"stage1": {"trainables": {"relative": 0.01}}},
            r"trainables\.relative is 0\.01, expected a value such as False",
        ),
        (
            {"stage1": {"trainables": {"learning_rate": 1e-3}}},
            r"names the field learning_rate, expected one of rate, rel",
        ),
        ({"stage3": {"trainables": {"rate": 1e-3}}}, r"changes\.stage3\.trainables names the field rate"),
        ({"stage2": {"statistic": "mode"}}, r"stage2\.statistic is 'mode', expected one of mean, median, mad: "),
        ({"stage2": {"round_zero_point": "no"}}, r"round_zero_point is 'no', expected a value such as True"),
        ({"weights": {"of": "neither"}}, r"weights\.of is 'neither', expected one of activations, weights, all: "),
    ],
)
def test_a_change_that_does_not_fit_names_its_place(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(IsvitError, match=told):
        recipe(**changes)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([], "No step of the recipe quantizes weights, expected one: add a step Ranges or Tune"),
        ([Ranges()], "No step of the recipe quantizes weights"),
        ([Tune("stage1", weights=False), Fold()], "No step of the recipe quantizes weights"),
        ([Tune(activations=False)], "No step of the recipe chooses ranges of activations, expected one: add a step"),
        ([Ranges(), Ranges(of="weights")], "Two steps of the recipe have the name ranges, expected a name each"),
        ([Tune("a"), Fold("b"), Tune("a")], "Two steps of the recipe have the name a"),
        ([Fold("first"), Tune()], "The step first needs ranges .* nobody has chosen, expected a step"),
        ([Ranges("first", of="weights")], "The step first needs ranges .* nobody has chosen, expected a step"),
    ],
    ids=[
        "none",
        "no_weights",
        "float_weights",
        "float_activations",
        "two_ranges",
        "two_tunes",
        "fold_first",
        "weights_first",
    ],
)
def test_steps_that_do_not_fit_together_are_refused(steps: list[Any], told: str) -> None:
    with pytest.raises(IsvitError, match=told + r".*model\.recipe\.steps(, such as Ranges)?\.$"):
        Recipe(steps=steps)


@pytest.mark.parametrize(
    "steps",
    [[Tune(activations=False)], [Tune(activations=False), Fold()], [Tune(activations=False), WEIGHTS]],
    ids=["alone", "before_a_fold", "before_weights"],
)
def test_activations_without_ranges_are_refused_before_anything_is_done(steps: list[Any]) -> None:
    with pytest.raises(IsvitError, match=r"activations.*, expected .*model\.recipe\.steps(, such as Ranges)?\.$"):
        Recipe(steps=steps)


def test_a_change_may_make_an_order_wrong() -> None:
    with pytest.raises(IsvitError, match="No step of the recipe quantizes weights"):
        replace(read_recipe("isvit"), changes={"stage3": {"weights": False}})


@pytest.mark.parametrize("count", [0, -1])
def test_no_image_for_ranges_is_refused(count: int) -> None:
    with pytest.raises(IsvitError, match=rf"model\.recipe\.range_images is {count}, expected 1 or more"):
        Recipe(steps=[Tune()], range_images=count)


def test_a_role_that_the_network_lacks_is_refused() -> None:
    strange = Recipe(steps=[Tune()], placement=Placement(others={"neck_in": Variant()}))
    with pytest.raises(IsvitError, match=r"no tensor of the role neck_in, expected one of attn_prob, fc1_in, .*others"):
        strange.open(NETWORK, Bits())
    with pytest.raises(IsvitError, match="no tensor of the role rpn_in, "):
        replace(strange, placement=Placement(others={"rpn_in": Variant(bits=7)})).open(NETWORK, Bits())
    assert quantizers(replace(strange, placement=Placement()).open(NETWORK, Bits()).model)


def test_defaults_are_plain() -> None:
    plain = Recipe(steps=[Tune()])
    assert (plain.name, plain.placement, plain.range_images, plain.reconstruct) == (
        "recipe",
        Placement(),
        64,
        "backbone",
    )
    assert plain.steps == [Tune("tune", True, True, Inputs("quantized"), NormalizedError(), StraightThrough())]
    assert all(dataclasses.is_dataclass(step) for step in plain.steps)
