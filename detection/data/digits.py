"""Scenes of the digits that ship with the package."""

from collections.abc import Sequence
from typing import Any, Final

from PIL import Image
from typing_extensions import override

from detection.data.base import AnnotatedImages, DetectionDataModule
from detection.data.entries import Origin
from detection.data.reading import annotations_of
from detection.embedded.coco import coco_dataset, scene_image, scene_names
from detection.embedded.scenes import Scene, SceneStyle, digit_scene
from isvit_lightning.data.sources import ImageSource
from isvit_lightning.embedded.digits import Split

SEED: Final = 2023
"""Seed of the scenes; the embedded detector was trained on those of another one."""


class SceneSource(ImageSource):
    """Scenes of one split, drawn when they are first needed.

    Args:
        split: digits that are drawn.
        count: number of scenes.
        style: what scenes look like.
    """

    def __init__(self, split: Split, count: int, style: SceneStyle) -> None:
        self._names = scene_names(split, count)
        self._split: Split = split
        self._style = style
        self._scenes: dict[int, Scene] = {}

    @override
    def __len__(self) -> int:
        return len(self._names)

    @override
    def name(self, index: int) -> str:
        return self._names[index]

    @override
    def location(self, index: int) -> str:
        return self._names[index]

    @override
    def size(self, index: int) -> None:
        """None: scenes of two splits share no digit, so that their contents need not be compared."""
        return

    @override
    def read(self, index: int) -> bytes:
        return self.scene(index).image.contiguous().numpy().tobytes()

    @override
    def image(self, index: int) -> Image.Image:
        return scene_image(self.scene(index))

    def scene(self, index: int) -> Scene:
        """The scene of an image."""
        if index not in self._scenes:
            self._scenes[index] = digit_scene(self._split, index, SEED, self._style)
        return self._scenes[index]

    def scenes(self) -> Sequence[Scene]:
        """All scenes."""
        return [self.scene(index) for index in range(len(self))]


class DigitsDetectionDataModule(DetectionDataModule):
    """Handwritten digits at random place and size on textured canvases, in 10 classes: nothing to download.

    Calibration scenes show digits that the embedded detector was trained on, evaluation scenes those that it never saw.

    Args:
        calibration_images: number of scenes to calibrate on, at most 1024.
        evaluation_images: number of scenes to evaluate on.
        canvas: height and width of a scene.
        max_objects: most digits on a scene.
        workers: processes that load images; scenes are in memory, so that none are needed.
        **options: those of every data module of a detector.

    Raises:
        IsvitError: a number below 1, or a canvas too small for the digits.
    """

    calibration_option = evaluation_option = "data"

    def __init__(
        self,
        *,
        calibration_images: int = 128,
        evaluation_images: int = 200,
        canvas: tuple[int, int] = (128, 128),
        max_objects: int = 5,
        workers: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            calibration_images=calibration_images,
            evaluation_images=evaluation_images,
            canvas=canvas,
            workers=workers,
            scale=(max(canvas), min(canvas)),
            **options,
        )
        self._count = evaluation_images
        self.style = SceneStyle(size=self.canvas, max_objects=max_objects)

    @override
    def calibration_source(self) -> SceneSource:
        """Scenes of the training digits."""
        return SceneSource("train", 1024, self.style)

    @override
    def annotated_images(self) -> AnnotatedImages:
        """Scenes of the held-out digits."""
        source = SceneSource("held_out", self._count, self.style)
        dataset = coco_dataset(source.scenes(), "held_out", [source.name(index) for index in range(len(source))])
        annotations = annotations_of(dataset, Origin("the set of digits", "data"))
        return AnnotatedImages(source, annotations.images, annotations)
