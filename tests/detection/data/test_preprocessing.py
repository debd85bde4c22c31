"""The calibration canvas and the resized evaluation image, against mmdet's own pipeline and data preprocessor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")

from detection.data.coco import ListedSource
from detection.data.preprocessing import DetectorPreprocessing, rescaled, to_pixels, to_tensor
from detection.embedded.network import build_digits_detector
from detection.runtime import import_mmdet
from isvit_lightning.data.files import FolderSource
from isvit_lightning.errors import IsvitError
from tests.detection.data.samples import write_image

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def preprocessor(**options: Any) -> Any:
    """Mmdet's data preprocessor, as in its configurations."""
    import_mmdet()
    from mmdet.models.data_preprocessors import DetDataPreprocessor

    return DetDataPreprocessor(**{"mean": MEAN, "std": STD, "bgr_to_rgb": True, "pad_size_divisor": 32, **options})


def detector_with(own: Any) -> nn.Module:
    model = nn.Module()
    model.data_preprocessor = own
    return model


def canvas_of(own: Any, size: tuple[int, int], image: Any) -> torch.Tensor:
    preprocessing = DetectorPreprocessing.of(detector_with(own))
    return DetectorPreprocessing(**{**vars(preprocessing), "input_size": (3, *size)}).transform()(image)


def stored(tmp_path: Path, size: tuple[int, int]) -> ListedSource:
    write_image(tmp_path / "images" / "a.jpg", size, seed=1)
    files = FolderSource(tmp_path / "images")
    return ListedSource(files, files.names)


@pytest.mark.parametrize("size", [(45, 70), (70, 45), (64, 96), (10, 13)])
@pytest.mark.parametrize("options", [{}, {"bgr_to_rgb": False}, {"mean": [0.0] * 3, "std": [1.0] * 3}])
def test_canvas_is_what_mmdet_hands_to_the_network(
    tmp_path: Path, size: tuple[int, int], options: dict[str, Any]
) -> None:
    import mmcv

    write_image(tmp_path / "images" / "a.jpg", size, seed=1)
    image = mmcv.imread(str(tmp_path / "images" / "a.jpg"))
    factor = min(64 / size[0], 96 / size[1])
    resized = mmcv.imrescale(image, factor)
    own = preprocessor(**options)
    expected = own({"inputs": [torch.from_numpy(resized.transpose(2, 0, 1))], "data_samples": None})["inputs"][0]
    given = canvas_of(own, (64, 96), stored(tmp_path, size).image(0))
    assert given.shape == (3, 64, 96)
    # mmdet pads to the next multiple of 32, the canvas further; both with zeros.
    inside = given[:, : expected.shape[1], : expected.shape[2]]
    torch.testing.assert_close(inside, expected, rtol=1e-5, atol=1e-5)
    assert given.abs().sum() == pytest.approx(float(inside.abs().sum()))
    assert given[:, resized.shape[0] :].eq(0).all()
    assert given[:, :, resized.shape[1] :].eq(0).all()


@pytest.mark.parametrize("size", [(45, 70), (70, 45), (33, 33)])
def test_evaluation_image_is_that_of_mmdets_pipeline(tmp_path: Path, size: tuple[int, int]) -> None:
    import_mmdet()
    from mmdet.datasets.transforms import PackDetInputs, Resize
    from mmengine.dataset import Compose

    source = stored(tmp_path, size)
    pipeline = Compose(
        [
            {"type": "LoadImageFromFile", "backend_args": None},
            Resize(scale=(80, 48), keep_ratio=True),
            PackDetInputs(meta_keys=("img_path", "ori_shape", "img_shape", "scale_factor")),
        ]
    )
    expected = pipeline({"img_path": str(tmp_path / "images" / "a.jpg")})
    pixels = rescaled(to_pixels(source.image(0)), (80, 48))
    assert torch.equal(to_tensor(pixels), expected["inputs"])
    assert pixels.shape[:2] == expected["data_samples"].img_shape


def test_it_reads_the_detector() -> None:
    preprocessing = DetectorPreprocessing.of(detector_with(preprocessor()))
    np.testing.assert_allclose([255 * value for value in preprocessing.mean], MEAN, rtol=1e-6)
    np.testing.assert_allclose([255 * value for value in preprocessing.std], STD, rtol=1e-6)
    assert preprocessing.bgr_to_rgb
    assert preprocessing.divisor == 32
    assert DetectorPreprocessing.of(build_digits_detector()).mean == (0.5, 0.5, 0.5)


def test_a_network_that_is_no_detector() -> None:
    with pytest.raises(IsvitError, match=r"^A Linear has no data preprocessor .* change model.network.$"):
        DetectorPreprocessing.of(nn.Linear(2, 2))


def test_a_sliver_of_an_image_keeps_a_pixel(tmp_path: Path) -> None:
    canvas = canvas_of(preprocessor(), (32, 64), stored(tmp_path, (200, 1)).image(0))
    assert canvas[:, :, 0].ne(0).any()
    assert canvas[:, :, 1:].eq(0).all()
