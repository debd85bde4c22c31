"""Images from folders with annotations in COCO's format."""

import struct
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from typing import Any

import cv2
import mmcv
from PIL import Image
from typing_extensions import override

from detection.data.annotations import ListedImage
from detection.data.base import AnnotatedImages, DetectionDataModule
from detection.data.reading import read_annotations, read_images
from detection.data.segmentations import Size
from isvit_lightning.data.decoding import upright_size
from isvit_lightning.data.files import FileSource, open_source
from isvit_lightning.data.sources import ImageSource
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.paths import expand_path


class ListedSource(ImageSource):
    """Images of a folder or archive in the order of a list, decoded by OpenCV as mmdet does.

    Args:
        files: the folder or archive.
        names: path of each image, relative to it; each is there, or is a link to one that is.
    """

    def __init__(self, files: FileSource, names: Sequence[str]) -> None:
        self._files = files
        self._names = tuple(names)
        self._places = [place for name in names if (place := files.place(name)) is not None]

    @override
    def __len__(self) -> int:
        return len(self._places)

    @override
    def name(self, index: int) -> str:
        return self._names[index]

    @override
    def location(self, index: int) -> str:
        return self._files.location(self._places[index])

    @override
    def size(self, index: int) -> int | None:
        return self._files.size(self._places[index])

    @override
    def read(self, index: int) -> bytes:
        return self._files.read(self._places[index])

    @override
    def image(self, index: int) -> Image.Image:
        # OpenCV and Pillow decode a JPEG to slightly different pixels.
        try:
            pixels = mmcv.imfrombytes(self.read(index), channel_order="rgb", backend="cv2")
        except cv2.error:
            pixels = None
        # Floating-point numbers and whole ones of 32 bits are no pictures to OpenCV.
        return super().image(index) if pixels is None else Image.fromarray(pixels)

    def picture_size(self, index: int) -> Size:
        """Height and width of :meth:`image`, where possible without decoding it.

        Raises:
            UnreadableImageError: the image cannot be read or decoded.
        """
        try:
            with Image.open(BytesIO(self.read(index))) as header:
                width, height = upright_size(header)
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
            width, height = self.image(index).size
        return height, width


class CocoDataModule(DetectionDataModule):
    """Images in folders or .tar archives with annotations in COCO's format.

    Calibration images need no annotations; give the annotations of the training images all the same, so that only
    images of that list are taken and none of them can be one that is evaluated on. ``$NAME``, ``${NAME}`` and ``~`` in
    paths are replaced; ISVIT_DATA is ../shared/data where it is not set.

    Args:
        calibration: folder or .tar archive of the calibration images, such as train2017; not needed to evaluate only.
        calibration_annotations: annotations that list the training images, such as instances_train2017.json; none
            takes every image of the folder.
        evaluation: folder or .tar archive of the evaluation images, such as val2017; not needed to calibrate only.
        evaluation_annotations: annotations of the evaluation images, such as instances_val2017.json.
        **options: those of every data module of a detector.
    """

    def __init__(
        self,
        calibration: str | None = None,
        calibration_annotations: str | None = None,
        evaluation: str | None = None,
        evaluation_annotations: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.calibration = calibration
        self.calibration_annotations = calibration_annotations
        self.evaluation = evaluation
        self.evaluation_annotations = evaluation_annotations

    @override
    def calibration_source(self) -> ListedSource | None:
        """The images of the calibration folder that the annotations list, or all of them.

        Raises:
            IsvitError: the folder or the file cannot be read, or the folder holds none of the listed images.
        """
        if self.calibration is None:
            return None
        files = open_source(self.calibration, self.calibration_option)
        listed = self._training_list
        if listed is None:
            return ListedSource(files, files.names)
        # A part of the training images is enough to calibrate on.
        by_place = {place: image.file for image in listed if (place := files.place(image.file)) is not None}
        names = sorted(by_place.values())
        if not names:
            raise IsvitError(
                f"{files.root} holds none of the {len(listed)} images that {self.calibration_annotations} lists, such "
                f"as {listed[0].file if listed else 'any'}, expected training images: change data.calibration or "
                "data.calibration_annotations."
            )
        return ListedSource(files, names)

    @override
    def annotated_images(self) -> AnnotatedImages | None:
        """The images that the evaluation's annotations list.

        Raises:
            IsvitError: there are no annotations, they cannot be read, or the folder lacks a listed image.
        """
        if self.evaluation is None:
            return None
        if self.evaluation_annotations is None:
            raise IsvitError(
                f"The images of {self.evaluation} have no annotations, expected a file in COCO's format: set "
                "data.evaluation_annotations."
            )
        path = expand_path(self.evaluation_annotations)
        annotations = read_annotations(path, "data.evaluation_annotations")
        files = open_source(self.evaluation, self.evaluation_option)
        listed = annotations.images
        missing = sorted(image.file for image in listed if files.place(image.file) is None)
        if missing or not listed:
            raise IsvitError(
                f"{path} lists {len(listed)} images of which {files.root} lacks {len(missing)}"
                f"{f', such as {missing[0]}' if missing else ''}, expected at least one and each in its place: change "
                "data.evaluation or data.evaluation_annotations."
            )
        source = ListedSource(files, [image.file for image in listed])
        return AnnotatedImages(source, listed, annotations, source.picture_size)

    @override
    def _require_disjoint(self) -> None:
        """Refuse to evaluate on calibration images: same place, same contents or same entry in both lists."""
        super()._require_disjoint()
        listed = self._training_list
        if listed is None or self._annotated is None:
            return
        source, chosen, _ = self._calibration
        used = {source.name(index) for index in chosen}
        evaluated = {(image.file, image.given) for image in self._annotated.listed}
        both = [image for image in listed if image.file in used and (image.file, image.given) in evaluated]
        if both:
            raise IsvitError(
                f"The calibration image {both[0].file} has the name and id ({both[0].given}) of an evaluation image, "
                "expected calibration and evaluation to share no image: change data.calibration_annotations to the "
                "list of the training images, or leave it out where they are two images."
            )

    @cached_property
    def _training_list(self) -> tuple[ListedImage, ...] | None:
        if self.calibration is None or self.calibration_annotations is None:
            return None
        path = expand_path(self.calibration_annotations)
        return read_images(path, "data.calibration_annotations")
