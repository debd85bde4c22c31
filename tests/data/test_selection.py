import logging
from pathlib import Path

import pytest
from torch import Tensor

from isvit_lightning.data.files import FolderSource
from isvit_lightning.data.selection import (
    CalibrationList,
    EvaluationList,
    calibration_order,
    evenly_spaced,
    first_overlap,
    readable,
)
from isvit_lightning.data.sources import ImageSource, LabeledImages, TensorSource, Transform
from tests.data.samples import MemoryDataModule, source


def test_the_order_is_a_permutation_that_only_the_seed_changes() -> None:
    order = calibration_order(20, "random", seed=3)
    assert sorted(order) == list(range(20))
    assert order == calibration_order(20, "random", seed=3) != calibration_order(20, "random", seed=4)
    assert calibration_order(4, "first", seed=3) == [0, 1, 2, 3]


@pytest.mark.parametrize("classes", [1, 3, 7])
@pytest.mark.parametrize("extra", [0, 1, 5])
def test_evenly_spaced_images_meet_equal_classes_evenly(classes: int, extra: int) -> None:
    labels = [number % classes for number in range(classes * 6)]
    count = min(classes + extra, len(labels))
    chosen = evenly_spaced(labels, count)
    found = [labels[index] for index in chosen]
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    assert max(map(found.count, range(classes))) - min(map(found.count, range(classes))) <= 1
    assert set(found) == set(range(classes))


def test_overlap_by_contents_ignores_names_and_images_not_chosen() -> None:
    calibration, evaluation = source([5, 6, 7]), source([9, 8, 7])
    evaluation._origin = "other"
    assert first_overlap(calibration, [0, 1], evaluation) is None
    assert first_overlap(calibration, [0, 2], evaluation) == ("memory:7", "other:7")


def test_unlike_sizes_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration, evaluation = source([5, 6]), source([7, 8])
    monkeypatch.setattr(evaluation, "size", lambda index: 1)
    monkeypatch.setattr(evaluation, "read", None)
    assert first_overlap(calibration, [0, 1], evaluation) is None


def test_the_list_hashes_in_order() -> None:
    assert CalibrationList.of(source([1, 2]), [0, 1]).sha256 != CalibrationList.of(source([1, 2]), [1, 0]).sha256


def labeled(images: ImageSource, *labels: int) -> LabeledImages:
    return LabeledImages(images, labels or [0] * len(images), 9)


def test_the_list_of_evaluation_images_tells_number_names_classes_and_order() -> None:
    images = labeled(source([1, 2, 3]))
    listed = EvaluationList.of(images, [0, 2])
    assert listed == EvaluationList.of(labeled(source([1, 3])), [0, 1])
    assert listed != EvaluationList.of(labeled(source([1, 3]), 0, 1), [0, 1])
    assert listed.number == 2
    others = ([2, 0], [0, 1], [0], [0, 1, 2], [])
    assert len({listed.sha256, *(EvaluationList.of(images, chosen).sha256 for chosen in others)}) == 6


def test_names_of_evaluation_images_are_told_apart_and_need_not_be_text() -> None:
    images = source([1, 2])
    joined, apart = (TensorSource(images._images, names, "memory") for names in (["a", "bc"], ["ab", "c"]))
    assert EvaluationList.of(labeled(joined), [0, 1]) != EvaluationList.of(labeled(apart), [0, 1])
    assert EvaluationList.of(labeled(TensorSource(images._images, ["\udcff", "c"], "memory")), [0, 1]).number == 2


def test_files_of_another_size_are_other_evaluation_images(tmp_path: Path) -> None:
    lists = []
    for size in (4, 5, 4):
        (tmp_path / "0.bmp").write_bytes(bytes(size))
        lists.append(EvaluationList.of(labeled(FolderSource(tmp_path)), [0]))
    assert lists[0] == lists[2] != lists[1]


def test_the_list_of_a_data_module_is_of_what_it_evaluates_on() -> None:
    labels = [0, 1, 0, 1, 0, 1]
    data = MemoryDataModule(labels=labels, evaluation_images=2)
    seen = [str(int(image[0, 0, 0])) for images, _ in data.test_dataloader() for image in images]
    chosen = [int(name) - 100 for name in seen]
    assert data.evaluation_list() == EvaluationList.of(labeled(source(range(100, 106)), *labels), chosen)
    assert data.evaluation_list() != MemoryDataModule(labels=labels).evaluation_list()
    assert MemoryDataModule().evaluation_list() == EvaluationList(0, "")


class Damaged(TensorSource):
    """Images some of which cannot be decoded."""

    def __init__(self, count: int, damaged: set[int]) -> None:
        whole = source(range(count))
        super().__init__(whole._images, whole._names, "memory")
        self.damaged, self.tried = damaged, list[int]()

    def tensor(self, index: int, transform: Transform) -> Tensor:
        self.tried.append(index)
        if index in self.damaged:
            raise self.unreadable(index, "damaged")
        return super().tensor(index, transform)


def test_damaged_images_are_passed_over_in_order(caplog: pytest.LogCaptureFixture) -> None:
    images = Damaged(6, {1, 4, 5})
    assert readable(images, [4, 3, 1, 0, 5, 2], 2) == ([3, 0], [4, 1])
    assert images.tried == [4, 3, 1, 0]  # none more than are needed
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "Skipped 2 unreadable calibration images: 4, 1")
    ]


def test_whole_images_are_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert readable(Damaged(3, set()), [2, 0, 1], 2) == ([2, 0], [])
    assert readable(Damaged(3, set()), [2, 0, 1], 0) == ([], [])
    assert caplog.records == []


def test_there_may_be_too_few_whole_images() -> None:
    assert readable(Damaged(3, {0, 1}), [0, 1, 2], 2) == ([2], [0, 1])
