"""Medians, ratios and turns, on a clock that only the forms move."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from isvit_lightning.errors import IsvitError
from isvit_lightning.run.benchmark.forms import Form
from isvit_lightning.run.benchmark.timing import Speed, by_turns, limited_threads, time_forms


class Clock:
    """Stands still but where a form moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.heard: list[tuple[str, int, int]] = []
        """Form, threads of PyTorch and images of each call."""

    def __call__(self) -> float:
        return self.now


class Engine(nn.Module):
    """Takes as many seconds as it is told, one after the other; the last one for ever."""

    def __init__(self, clock: Clock, name: str, seconds: list[float]) -> None:
        super().__init__()
        self.clock, self.name, self.left = clock, name, seconds

    def forward(self, images: torch.Tensor) -> None:
        self.clock.heard.append((self.name, torch.get_num_threads(), len(images)))
        self.clock.now += self.left.pop(0) if len(self.left) > 1 else self.left[0]


def form(clock: Clock, engine: str, name: str, *seconds: float, is_float: bool = False) -> Form:
    return Form(engine, name, lambda _: Engine(clock, name, list(seconds)), is_float)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with limited_threads(1):
        yield


def test_forms_take_turns_forwards_and_backwards() -> None:
    clock, heard = Clock(), list[str]()
    calls: dict[str, Callable[[], object]] = {name: lambda name=name: heard.append(name) for name in "abc"}  # type: ignore[misc]
    seconds = by_turns(calls, 3, clock)
    # The first of each two calls is not timed.
    assert "".join(heard) == "aabbccccbbaaaabbcc"
    assert seconds == {name: [0.0] * 3 for name in "abc"}


def test_only_the_second_call_of_a_turn_is_timed() -> None:
    clock = Clock()
    engine = Engine(clock, "a", [100.0, 1.0, 100.0, 2.0])
    assert by_turns({"a": lambda: engine(torch.zeros(1))}, 2, clock) == {"a": [1.0, 2.0]}


def test_medians_and_ratios_to_the_fastest_float_form_of_the_engine() -> None:
    clock = Clock()
    warm = (9.0, 1.0)  # building and compiling, then a batch before the first turn
    forms = [
        form(clock, "A", "eager", 0.4, is_float=True),
        form(clock, "A", "compiled", 0.2, is_float=True),
        # Untimed and timed calls: 0.1, 0.3 and 0.11 count.
        form(clock, "A", "integer", *warm, 7.0, 0.1, 7.0, 0.3, 7.0, 0.11),
        form(clock, "B", "float", 0.05, is_float=True),
        form(clock, "B", "integer", 0.1),
        form(clock, "C", "integer", 0.1),
    ]
    rows = time_forms(forms, torch.zeros(4, 1), [1], [4], 3, clock)
    assert [(row.engine, row.form, row.threads, row.batch) for row in rows] == [
        (each.engine, each.name, 1, 4) for each in forms
    ]
    assert [row.milliseconds for row in rows] == pytest.approx([400, 200, 110, 50, 100, 100])
    assert [row.ratio for row in rows[:5]] == pytest.approx([0.5, 1, 200 / 110, 1, 0.5])
    assert rows[5].ratio is None
    assert rows[2].quartiles == pytest.approx((105, 205))
    assert rows[2].first_seconds == pytest.approx(9)
    assert rows[2].images_per_second == pytest.approx(4 / 0.11)


def test_every_number_of_threads_and_images_is_one_of_its_own() -> None:
    clock, built = Clock(), list[int]()

    def make(threads: int) -> nn.Module:
        built.append(threads)
        return Engine(clock, "a", [0.1 * threads])

    rows = time_forms([Form("A", "a", make, is_float=True)], torch.zeros(3, 1), [2, 1], [1, 3], 1, clock)
    assert [(row.threads, row.batch) for row in rows] == [(2, 1), (2, 3), (1, 1), (1, 3)]
    assert built == [2, 2, 1, 1]
    assert [row.milliseconds for row in rows] == pytest.approx([200, 200, 100, 100])
    assert {(threads, count) for _, threads, count in clock.heard} == {(2, 1), (2, 3), (1, 1), (1, 3)}
    assert torch.get_num_threads() == 1


def test_a_form_that_fails_is_a_row_that_says_why() -> None:
    clock = Clock()

    def refuse(_threads: int) -> nn.Module:
        raise IsvitError("There is no engine, expected one: install it.")

    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> None:
            raise ValueError("no such kernel\nstack")

    forms = [
        Form("A", "refused", refuse, is_float=True),
        Form("A", "broken", lambda _: Broken()),
        form(clock, "A", "float", 0.1, is_float=True),
    ]
    refused, broken, well = time_forms(forms, torch.zeros(1, 1), [1], [1], 2, clock)
    assert refused == Speed("A", "refused", 1, 1, reason="There is no engine, expected one: install it.")
    assert broken.reason == "ValueError: no such kernel."
    assert (broken.milliseconds, broken.ratio, broken.images_per_second) == (None, None, None)
    assert (well.milliseconds, well.ratio) == (pytest.approx(100), pytest.approx(1))


def test_threads_are_given_back_after_a_fault() -> None:
    seen = list[int]()

    def fail() -> None:
        with limited_threads(2):
            seen.append(torch.get_num_threads())
            raise ValueError("fault")

    with pytest.raises(ValueError, match="fault"):
        fail()
    assert seen == [2]
    assert torch.get_num_threads() == 1
