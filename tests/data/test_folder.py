import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from isvit_lightning.data import ImageFolderDataModule
from isvit_lightning.data.loading import UNLABELED
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Preprocessing
from tests.data.samples import (
    PREPROCESSING,
    Store,
    calibration_files,
    evaluation_files,
    png,
    values,
    write,
    write_tar,
)


def folder_data(
    calibration: Path | None = None, evaluation: Path | None = None, class_map: Path | None = None, **options: Any
) -> ImageFolderDataModule:
    options = {"calibration_images": 3, "workers": 0, "selection": "first", **options}
    paths = [None if path is None else str(path) for path in (calibration, evaluation, class_map)]
    data = ImageFolderDataModule(*paths, **options)
    data.attach(PREPROCESSING)
    return data


def labels(data: ImageFolderDataModule) -> dict[int, int]:
    return {
        value: label
        for images, batch in data.test_dataloader()
        for value, label in zip(values(images), batch.tolist(), strict=True)
    }


def test_calibration_images_lie_flat_or_nested(place: Store) -> None:
    nested = {"b/x/1.png": png(1), "a/2.JPG": png(2), "3.png": png(3), "a/notes.txt": b"", "a/._2.png": b""}
    data = folder_data(place("calibration", nested))
    assert data.calibration_list().names == ("3.png", "a/2.JPG", "b/x/1.png")
    assert values(data.calibration_tensor()) == [3, 2, 1]


@pytest.mark.parametrize("folder", ["", "2024/", "2024/05/"])
def test_prediction_needs_no_labels(place: Store, folder: str) -> None:
    files = {f"{folder}{number}.png": png(number) for number in range(3)} | {"2023/late.png": png(9)}
    data = folder_data(place("calibration", calibration_files()), place("photos", files), evaluation_images=20)
    seen = [value for images, _ in data.predict_dataloader() for value in values(images)]
    assert data.num_prediction_images == 4
    assert dict(zip(data.predict_names(), seen, strict=True)) == {
        **{f"{folder}{number}.png": number for number in range(3)},
        "2023/late.png": 9,
    }


def test_calibration_images_may_be_predicted_on(place: Store) -> None:
    photos = place("photos", calibration_files(6))
    data = folder_data(photos, photos, evaluation_images=2)
    assert data.predict_names() == ("0000.png", "0003.png")


def test_labels_follow_the_sorted_class_folders(place: Store) -> None:
    files = {"dog/a.png": png(1), "cat/b.png": png(2), "cat/more/c.png": png(3), "ant/d.png": png(4)}
    data = folder_data(evaluation=place("evaluation", files))
    assert labels(data) == {1: 2, 2: 1, 3: 1, 4: 0}
    assert data.num_classes == 3


def test_a_class_map_sets_the_order(place: Store, tmp_path: Path) -> None:
    class_map = tmp_path / "classes.txt"
    class_map.write_text("dog\nsea lion\nunseen\ncat\n")
    files = {"cat/1.png": png(1), "dog/1.png": png(2), "sea lion/1.png": png(3)}
    data = folder_data(evaluation=place("evaluation", files), class_map=class_map)
    assert labels(data) == {1: 3, 2: 0, 3: 1}
    assert data.num_classes == 4


@pytest.mark.parametrize("folder", ["", "images/", "all/images/"])
def test_images_in_one_folder_have_no_classes(place: Store, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="isvit_lightning.data.labels")
    path = place("evaluation", {f"{folder}{number}.png": png(number) for number in range(5)})
    data = folder_data(evaluation=path)
    assert labels(data) == dict.fromkeys(range(5), UNLABELED)
    assert (data.num_classes, data.num_evaluation_images) == (0, 5)
    assert data.evaluation_list().number == 5
    expected = f"{path} holds images without classes: the network is compared with the float one alone"
    assert caplog.messages == [expected]


def test_some_images_without_classes_are_spread_over_the_names(place: Store) -> None:
    files = {f"{number}.png": png(number) for number in range(8)}
    assert sorted(labels(folder_data(evaluation=place("evaluation", files), evaluation_images=4))) == [0, 2, 4, 6]


def test_images_without_classes_are_not_calibrated_on(place: Store) -> None:
    data = folder_data(place("calibration", calibration_files(4)), place("evaluation", {"x.png": png(2)}))
    with pytest.raises(IsvitError, match="0002.png is the evaluation image"):
        data.calibration_tensor()


def test_a_class_map_wants_class_folders(place: Store, tmp_path: Path) -> None:
    class_map = tmp_path / "classes.txt"
    class_map.write_text("cat\ndog\n")
    flat = folder_data(evaluation=place("flat", calibration_files()), class_map=class_map)
    with pytest.raises(IsvitError, match="lies in no class folder, expected one subfolder per class"):
        flat.test_dataloader()
    single = folder_data(evaluation=place("single", {"dog/1.png": png(1)}), class_map=class_map)
    assert labels(single) == {1: 1}
    assert single.num_classes == 2


def test_images_beside_class_folders_are_refused(place: Store) -> None:
    data = folder_data(evaluation=place("evaluation", {**evaluation_files(), "loose.png": png(9)}))
    with pytest.raises(IsvitError, match=r"^The image loose.png of .* lies in no class folder"):
        data.test_dataloader()


def test_copies_are_found_across_folder_and_archive(tmp_path: Path) -> None:
    evaluation = write(tmp_path / "evaluation", evaluation_files())
    calibration = write_tar(tmp_path / "calibration.tar", {**calibration_files(2), "x/z.png": png(103)})
    with pytest.raises(IsvitError, match=r"calibration.tar/x/z.png is the evaluation image \S*bird/3.png"):
        folder_data(calibration, evaluation).calibration_tensor()


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"^\S*/none does not exist, expected a folder .*: change data.calibration.$"):
        folder_data(tmp_path / "none").calibration_tensor()
    with pytest.raises(IsvitError, match=r"^\S*/none does not exist, expected a folder .*: change data.evaluation.$"):
        folder_data(evaluation=tmp_path / "none").test_dataloader()


def test_variables_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(write(tmp_path / "calibration", calibration_files()).parent))
    assert len(folder_data("${PLACE}/calibration").calibration_tensor()) == 3


@pytest.mark.real
def test_the_first_real_images() -> None:
    root = Path(os.environ.get("ISVIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = root / "imagenet_calibration.tar"
    if not path.exists():
        pytest.skip(f"{path} is absent: set ISVIT_DATA to a folder that holds it")
    data = ImageFolderDataModule(str(path), calibration_images=4, selection="first", workers=0)
    data.attach(Preprocessing(input_size=(3, 224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9))
    images = data.calibration_tensor()
    assert images.shape == (4, 3, 224, 224)
    assert data.calibration_list().names == tuple(f"calibration/{number:04d}.jpg" for number in range(4))
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert torch.isfinite(images).all()
