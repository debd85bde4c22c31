import pytest

from isvit_lightning.data.selection import CalibrationList, calibration_order, evenly_spaced, first_overlap
from tests.data.samples import source


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
