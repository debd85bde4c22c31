"""What the data modules of detectors share: calibration canvases, evaluation batches and ground truth."""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from PIL.Image import Image
from typing_extensions import override

from detection.data.annotations import CocoAnnotations, GroundTruth, ListedImage
from detection.data.loading import EvaluationImages, evaluation_loader
from detection.data.preprocessing import DetectorPreprocessing
from detection.data.segmentations import Size
from isvit_lightning.data.base import CalibrationDataModule
from isvit_lightning.data.listing import shortened
from isvit_lightning.data.loading import ImageLoader
from isvit_lightning.data.selection import EvaluationList
from isvit_lightning.data.sources import ImageSource, LabeledImages
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Preprocessing


@dataclass(frozen=True)
class AnnotatedImages:
    """Images with annotations, to evaluate on.

    Args:
        source: the images.
        listed: number and name of each image, in the order of the source.
        annotations: what is on them.
        size_of: height and width of an image of the source as it is read; None believes the annotations.
    """

    source: ImageSource
    listed: Sequence[ListedImage]
    annotations: CocoAnnotations
    size_of: Callable[[int], Size] | None = None


class DetectionDataModule(CalibrationDataModule):
    """Calibration images and annotated evaluation images, prepared for one detector.

    A subclass says where images come from, in :meth:`calibration_source` and :meth:`annotated_images`.

    Args:
        canvas: height and width of the canvas on which a calibration image is placed, resized to fit and padded.
        scale: longest longer side and longest shorter side of an evaluation image, as in mmdet's Resize.
        classes: names of the detector's classes in its order; none takes the categories of the annotations.
        batch_size: images in a batch of the evaluation.
        **options: those of every data module.

    Raises:
        IsvitError: a size below 1.
    """

    def __init__(
        self,
        *,
        canvas: tuple[int, int] = (800, 1344),
        scale: tuple[int, int] = (1333, 800),
        classes: list[str] | None = None,
        batch_size: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **options)
        for name, size in (("canvas", canvas), ("scale", scale)):
            if min(size) < 1:
                raise IsvitError(f"data.{name} is {list(size)}, expected two sizes of 1 or more: change data.{name}.")
        self.canvas = (canvas[0], canvas[1])
        self.scale = (scale[0], scale[1])
        self.classes = classes

    @abstractmethod
    def annotated_images(self) -> AnnotatedImages | None:
        """All images that may be evaluated on; None if there are none."""

    @override
    def evaluation_source(self) -> LabeledImages | None:
        if self._annotated is None:
            return None
        # Told here already, because calibration images are compared with these before they are loaded.
        classes = self._annotated.annotations.classes(self.classes)
        # Images of a detector have no class: few are spaced evenly over the list.
        return LabeledImages(self._annotated.source, [0] * len(self._annotated.listed), len(classes))

    @override
    def attach(self, preprocessing: Preprocessing) -> None:
        """Tell how images are preprocessed, before any is loaded.

        Args:
            preprocessing: that of the detector.

        Raises:
            IsvitError: it is that of a classifier, or the detector takes no images of the size of the canvas.
        """
        if not isinstance(preprocessing, DetectorPreprocessing):
            raise IsvitError(
                f"{type(self).__name__} holds images for a detector, but the network is none, expected a detector: "
                "change model.network, or choose images of a classifier with data."
            )
        if any(size % preprocessing.divisor for size in self.canvas):
            raise IsvitError(
                f"data.canvas is {list(self.canvas)}, but the detector pads its images to multiples of "
                f"{preprocessing.divisor}, expected such a height and width: change data.canvas."
            )
        super().attach(replace(preprocessing, input_size=(3, *self.canvas)))

    @override
    def evaluation_list(self) -> EvaluationList:
        """Number of the images that are evaluated on, and a hash over their names, what is on them and the classes."""
        listed = super().evaluation_list()
        if self._annotated is None:
            return listed
        annotations = self._annotated.annotations
        content = (listed.sha256, annotations.images, annotations.categories, annotations.objects, self.classes)
        return replace(listed, sha256=hashlib.sha256(repr(content).encode(errors="surrogateescape")).hexdigest())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the detector's classes in its order.

        Raises:
            IsvitError: there is no evaluation data to take them from, or a class is no category of it.
        """
        annotated, _ = self._required()
        return tuple(category.name for category in annotated.annotations.classes(self.classes))

    def ground_truth(self) -> GroundTruth:
        """Annotations of the images that are evaluated on, by all processes together.

        Raises:
            IsvitError: there are no evaluation images, too few, none with an object, one of another size than the
                annotations say, or a class is no category.
        """
        return self._truth

    def require_classes(self, count: int, names: Sequence[str] = ()) -> None:
        """Check that a detector knows the classes of the annotations.

        Args:
            count: number of the detector's classes.
            names: of the detector's classes in its order, where its checkpoint tells them.

        Raises:
            IsvitError: it is another number than that of the annotations or of ``classes``, or the annotations have
                the same classes in another order and ``classes`` does not say which.
        """
        if self.num_classes not in (None, count):
            raise IsvitError(
                f"The evaluation images have {self.num_classes} classes but the detector has {count}, expected as "
                "many: name the detector's classes in its order with data.classes, or change "
                "data.evaluation_annotations or the checkpoint."
            )
        if names and self.classes is None and self.num_classes is not None:
            own = self.class_names
            if own != tuple(names) and sorted(own) == sorted(names):
                raise IsvitError(
                    f"The annotations have the classes {shortened(own)} but the detector was trained on "
                    f"{shortened(names)}, expected one order: name the detector's classes in its order with "
                    "data.classes."
                )

    def predict_images(self) -> Iterator[Image]:
        """The images in the order of :meth:`predict_names`, as they are stored, RGB."""
        images, mine = self._mine()
        return (images.source.image(index) for index in mine)

    @override
    def predict_dataloader(self) -> ImageLoader:
        """The same as :meth:`test_dataloader`."""
        return self.test_dataloader()

    @override
    def test_dataloader(self) -> ImageLoader:
        """Batches as mmdet's detectors take them in ``test_step``, those of this process.

        Raises:
            IsvitError: there are no evaluation images, too few, or one is also calibrated on.
        """
        annotated, _ = self._required()
        _, mine = self._mine()
        self._require_disjoint()
        loaded = EvaluationImages(annotated.source, annotated.listed, mine, self.scale)
        return evaluation_loader(loaded, self.batch_size, self.workers)

    @cached_property
    def _annotated(self) -> AnnotatedImages | None:
        return self.annotated_images()

    @cached_property
    def _truth(self) -> GroundTruth:
        annotated, images = self._required()
        evaluated = self._evaluated(images)
        ids = [annotated.listed[index].id for index in evaluated]
        sizes = dict(zip(ids, map(annotated.size_of, evaluated), strict=True)) if annotated.size_of else None
        return annotated.annotations.ground_truth(ids, self.classes, sizes)

    def _required(self) -> tuple[AnnotatedImages, LabeledImages]:
        if self._annotated is None or self._evaluation is None:
            raise IsvitError(
                f"There are no images to evaluate on, expected annotated images: set {self.evaluation_option} and "
                f"{self.evaluation_option}_annotations."
            )
        return self._annotated, self._evaluation
