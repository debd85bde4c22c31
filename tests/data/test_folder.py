import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from isvit_lightning.data import ImageFolderDataModule
from isvit_lightning.data.files import open_source
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Preprocessing
from tests.data.samples import PREPROCESSING, calibration_files, evaluation_files, png, values, write, write_tar

Store = Callable[[str, dict[str, bytes]], Path]


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


@pytest.fixture(params=["folder", "tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Stores files in a folder or in an archive and returns its path."""

    def store(name: str, files: dict[str, bytes]) -> Path:
        if request.param == "folder":
            return write(tmp_path / name, files)
        return write_tar(tmp_path / f"{name}.tar", files)

    return store


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


def test_a_folder_around_the_class_folders_is_looked_through(place: Store) -> None:
    data = folder_data(evaluation=place("evaluation", {"all/these/cat/1.png": png(1), "all/these/dog/1.png": png(2)}))
    assert labels(data) == {1: 0, 2: 1}


def test_a_class_map_sets_the_order(place: Store, tmp_path: Path) -> None:
    class_map = tmp_path / "classes.txt"
    class_map.write_text("dog\nsea lion\nunseen\ncat\n")
    files = {"cat/1.png": png(1), "dog/1.png": png(2), "sea lion/1.png": png(3)}
    data = folder_data(evaluation=place("evaluation", files), class_map=class_map)
    assert labels(data) == {1: 3, 2: 0, 3: 1}
    assert data.num_classes == 4


def test_a_class_that_the_map_lacks(place: Store, tmp_path: Path) -> None:
    class_map = tmp_path / "classes.txt"
    class_map.write_text("bird\ncat\n")
    data = folder_data(evaluation=place("evaluation", evaluation_files()), class_map=class_map)
    with pytest.raises(IsvitError, match=r"^The class folder dog of .* is not in the class map, .* data.class_map"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("content", "fault"), [(None, "cannot be read"), ("", "is empty"), ("cat\ndog\ncat\n", "names a class twice")]
)
def test_class_maps_that_cannot_be_used(tmp_path: Path, content: str | None, fault: str) -> None:
    class_map = tmp_path / "classes.txt"
    if content is not None:
        class_map.write_text(content)
    data = folder_data(evaluation=write(tmp_path / "evaluation", evaluation_files()), class_map=class_map)
    with pytest.raises(IsvitError, match=rf"classes.txt {fault}.*: change data.class_map.$"):
        data.test_dataloader()


def test_an_image_outside_the_class_folders(place: Store) -> None:
    data = folder_data(evaluation=place("evaluation", {**evaluation_files(), "loose.png": png(9)}))
    with pytest.raises(IsvitError, match=r"^The image loose.png of .* lies in no class folder, .* data.evaluation.$"):
        data.test_dataloader()


def test_a_flat_evaluation_folder(place: Store) -> None:
    data = folder_data(evaluation=place("evaluation", {"images/1.png": png(1), "images/2.png": png(2)}))
    with pytest.raises(IsvitError, match="holds the single class folder images, expected one subfolder per class"):
        data.test_dataloader()


def test_an_empty_class_folder_leaves_the_order_open(tmp_path: Path) -> None:
    root = write(tmp_path / "evaluation", evaluation_files())
    (root / "ant").mkdir()
    with pytest.raises(IsvitError, match=r"^The class folder ant of .* holds no image, .* set data.class_map"):
        folder_data(evaluation=root).test_dataloader()


def test_copies_are_found_across_folder_and_archive(tmp_path: Path) -> None:
    evaluation = write(tmp_path / "evaluation", evaluation_files())
    calibration = write_tar(tmp_path / "calibration.tar", {**calibration_files(2), "x/z.png": png(103)})
    with pytest.raises(IsvitError, match=r"calibration.tar/x/z.png is the evaluation image \S*bird/3.png"):
        folder_data(calibration, evaluation).calibration_tensor()


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    real = write(tmp_path / "elsewhere", calibration_files(3))
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "linked").symlink_to(real)
    data = folder_data(tmp_path / "calibration", real.parent / "none")
    assert data.calibration_list().names[0] == "linked/0000.png"
    data = folder_data(tmp_path / "calibration", write(tmp_path / "evaluation", {"a/1.png": png(9), "b/1.png": png(8)}))
    assert len(data.calibration_tensor()) == 3


def test_an_archive_is_read_in_place_and_after_pickling(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", {"./a/1.png": png(1), "a/notes.txt": b"text", "/b/2.png": png(2)})
    source = pickle.loads(pickle.dumps(open_source(str(path), "data.calibration")))
    assert source.names == ("a/1.png", "b/2.png")
    assert source.read(1) == png(2)
    assert source.size(1) == len(png(2))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["images.tar"]


def test_an_archive_that_ends_early(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "images.tar", {"1.png": png(1)})
    path.write_bytes(path.read_bytes()[: 512 + 20])
    data = folder_data(path, calibration_images=1)
    with pytest.raises(IsvitError, match=r"images.tar"):
        data.calibration_tensor()


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(IsvitError, match=r"^\S*/none does not exist, expected a folder .*: change data.calibration.$"):
        folder_data(tmp_path / "none").calibration_tensor()
    with pytest.raises(IsvitError, match=r"^\S*/none does not exist, expected a folder .*: change data.evaluation.$"):
        folder_data(evaluation=tmp_path / "none").test_dataloader()


def test_no_image(place: Store) -> None:
    with pytest.raises(IsvitError, match=r"holds no image, expected files such as .jpg, .*: change data.calibration.$"):
        folder_data(place("empty", {"notes.txt": b"text"})).calibration_tensor()


@pytest.mark.parametrize("kind", ["text", "compressed"])
def test_a_file_that_is_no_archive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "images.tar"
    if kind == "text":
        path.write_text("no archive" * 100)
    else:
        write_tar(path, calibration_files(), "w:gz")
    with pytest.raises(IsvitError, match=r"cannot be opened .* uncompressed .tar archive: change data.calibration.$"):
        folder_data(path).calibration_tensor()


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
