"""What a benchmark is asked for."""

from dataclasses import dataclass

from isvit_lightning.errors import IsvitError

ENGINES = ("pytorch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Options:
    """Choices of a benchmark.

    Args:
        threads: numbers of threads.
        batches: numbers of images at once.
        repeats: batches that are timed of each form.
        engines: of :data:`ENGINES`.
        accuracy: measure each form on the evaluation images.
        profile: list the products that are ones of floats.
    """

    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 20
    engines: tuple[str, ...] = ENGINES
    accuracy: bool = True
    profile: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise IsvitError(f"There are {self.repeats} repeats, expected at least one: change --repeats.")


def options_of(threads: str, batches: str, repeats: int, engines: str, accuracy: bool, profile: bool) -> Options:
    """Options as a command line gives them.

    Args:
        threads: numbers with commas between them.
        batches: numbers with commas between them.
        repeats: batches that are timed of each form.
        engines: names with commas between them.
        accuracy: measure each form on the evaluation images.
        profile: list the products that are ones of floats.

    Raises:
        IsvitError: one of them is not what it should be.
    """
    return Options(
        _numbers(threads, "threads"), _numbers(batches, "batches"), repeats, _engines(engines), accuracy, profile
    )


def _parts(text: str) -> list[str]:
    return list(dict.fromkeys(each.strip() for each in text.split(",")))


def _numbers(text: str, option: str) -> tuple[int, ...]:
    parts = _parts(text)
    if not all(each.isascii() and each.isdigit() and int(each) for each in parts):
        raise IsvitError(f'--{option} is "{text}", expected whole numbers from 1 such as 1,2: change --{option}.')
    return tuple(map(int, parts))


def _engines(text: str) -> tuple[str, ...]:
    parts = _parts(text)
    unknown = [each for each in parts if each not in ENGINES]
    if unknown:
        raise IsvitError(f'There is no engine "{unknown[0]}", expected some of {", ".join(ENGINES)}: change --engines.')
    return tuple(parts)
