"""Time by turns: every form computes once in each round, so that a busy machine hits all alike."""

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from isvit_lightning.run.benchmark.forms import Form, reason_of

_LOG = logging.getLogger(__name__)
_Key = TypeVar("_Key")
Clock = Callable[[], float]
Call = Callable[[], object]


@dataclass(frozen=True)
class Speed:
    """How fast a form is on one number of threads and images.

    Args:
        engine: of the form.
        form: its name.
        threads: that it may use.
        batch: images at once.
        milliseconds: median of a batch; None where it does not compute.
        quartiles: milliseconds that a quarter of the batches is below, and above.
        first_seconds: building it and its first batch, with all compilation.
        ratio: median of the fastest float form of its engine through its own; None where there is none.
        reason: why it does not compute.
    """

    engine: str
    form: str
    threads: int
    batch: int
    milliseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    first_seconds: float | None = None
    ratio: float | None = None
    reason: str | None = None

    @property
    def images_per_second(self) -> float | None:
        """By the median."""
        return None if self.milliseconds is None else 1e3 * self.batch / self.milliseconds


_REST = 0.02
"""Seconds after which pools of threads are asleep."""


def by_turns(calls: Mapping[_Key, Call], repeats: int, clock: Clock = time.perf_counter) -> dict[_Key, list[float]]:
    """Seconds of each call in each of ``repeats`` rounds.

    A timed call follows an untimed one of the same kind, which brings weights and threads back from the neighbour's
    turn: as if it computed alone, which it will. Every second round goes backwards.

    Args:
        calls: what is timed, warmed up.
        repeats: rounds.
        clock: tells seconds.
    """
    seconds: dict[_Key, list[float]] = {key: [] for key in calls}
    order = list(calls)
    for turn in range(repeats):
        for key in order if turn % 2 == 0 else reversed(order):
            # Threads of the neighbours' pools go on spinning for a while, on the cores that this one needs.
            time.sleep(_REST)
            calls[key]()
            started = clock()
            calls[key]()
            seconds[key].append(clock() - started)
    return seconds


def time_forms(
    forms: Sequence[Form],
    images: torch.Tensor,
    threads: Iterable[int],
    batches: Iterable[int],
    repeats: int,
    clock: Clock = time.perf_counter,
) -> list[Speed]:
    """Speed of each form on each number of threads and images; forms take turns, numbers do not.

    Args:
        forms: what is timed.
        images: as many as the largest batch has, on the CPU.
        threads: numbers of threads.
        batches: numbers of images at once.
        repeats: batches that are timed of each.
        clock: tells seconds.
    """
    rows: list[Speed] = []
    sizes = tuple(batches)
    for count in threads:
        for size in sizes:
            _LOG.info("timing %d forms on %d threads, %d images at once, by turns", len(forms), count, size)
            with limited_threads(count), torch.inference_mode():
                rows += _cell(forms, images[:size], count, repeats, clock)
    return rows


def _cell(forms: Sequence[Form], images: torch.Tensor, threads: int, repeats: int, clock: Clock) -> list[Speed]:
    """One number of threads and images."""
    # Compiled code of other numbers is not needed any more, and torch gives up after eight of one function.
    torch.compiler.reset()
    rows: dict[int, Speed] = {}
    calls: dict[int, Call] = {}
    for place, form in enumerate(forms):
        row = Speed(form.engine, form.name, threads, len(images))
        try:
            started = clock()
            call = _call(form, threads, images)
            call()
            rows[place] = replace(row, first_seconds=clock() - started)
            call()
            calls[place] = call
        except Exception as error:  # noqa: BLE001 - the other forms are timed all the same
            rows[place] = replace(row, reason=reason_of(error))
    for place, seconds in by_turns(calls, repeats, clock).items():
        quartiles = _quartiles(seconds)
        rows[place] = replace(rows[place], milliseconds=1e3 * statistics.median(seconds), quartiles=quartiles)
    return _compared([(form, rows[place]) for place, form in enumerate(forms)])


def _compared(rows: Sequence[tuple[Form, Speed]]) -> list[Speed]:
    """Rows of one number of threads and images with their ratios."""
    fastest: dict[str, float] = {}
    for form, row in rows:
        if form.is_float and row.milliseconds is not None:
            fastest[form.engine] = min(row.milliseconds, fastest.get(form.engine, row.milliseconds))
    return [
        replace(row, ratio=fastest[row.engine] / row.milliseconds)
        if row.milliseconds is not None and row.engine in fastest
        else row
        for _, row in rows
    ]


def _call(form: Form, threads: int, images: torch.Tensor) -> Call:
    network, given = form.make(threads), form.placed(images)

    def call() -> None:
        network(given)
        if form.device.type == "cuda":
            torch.cuda.synchronize(form.device)

    return call


def _quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return 1e3 * seconds[0], 1e3 * seconds[0]
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return 1e3 * low, 1e3 * high


@contextmanager
def limited_threads(count: int) -> Iterator[None]:
    """PyTorch with ``count`` threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
