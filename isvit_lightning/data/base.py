"""What every data module shares: calibration images, evaluation batches and the checks between them."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from isvit_lightning.data.loading import ImageList, ImageLoader, image_loader
from isvit_lightning.data.selection import (
    LARGEST_SEED,
    CalibrationList,
    EvaluationList,
    Selection,
    calibration_order,
    evenly_spaced,
    first_overlap,
    readable,
)
from isvit_lightning.data.sources import ImageSource, LabeledImages, Transform
from isvit_lightning.errors import IsvitError
from isvit_lightning.sources.preprocessing import Preprocessing

_LOG = logging.getLogger(__name__)


class CalibrationDataModule(LightningDataModule, ABC):
    """Calibration images without labels and evaluation images with labels, preprocessed for one network.

    A subclass says where images come from, in :meth:`calibration_source` and :meth:`evaluation_source`.

    Args:
        calibration_images: number of images to calibrate on.
        evaluation_images: number of images to evaluate on, evenly spaced over the classes; none takes all.
        batch_size: images in a batch of the evaluation.
        workers: processes that load images; 0 loads them in the program itself.
        seed: seed of the random selection; none takes that of the run.
        selection: random draws calibration images by seed, first takes the first ones in name order.
        on_unreadable: what a damaged calibration image does: error stops, skip takes the next image in its place.
    """

    calibration_option: ClassVar[str] = "data.calibration"
    """The option that says where calibration images come from, for messages."""
    evaluation_option: ClassVar[str] = "data.evaluation"
    """The option that says where evaluation images come from, for messages."""

    def __init__(
        self,
        *,
        calibration_images: int = 1024,
        evaluation_images: int | None = None,
        batch_size: int = 32,
        workers: int = 2,
        seed: int | None = None,
        selection: Selection = "random",
        on_unreadable: Literal["error", "skip"] = "error",
    ) -> None:
        super().__init__()
        _require_at_least(1, "calibration_images", calibration_images)
        _require_at_least(1, "evaluation_images", 1 if evaluation_images is None else evaluation_images)
        _require_at_least(1, "batch_size", batch_size)
        _require_at_least(0, "workers", workers)
        if seed is not None and not 0 <= seed <= LARGEST_SEED:
            raise IsvitError(
                f"data.seed is {seed}, expected a whole number from 0 to {LARGEST_SEED}: change data.seed."
            )
        self.calibration_images = calibration_images
        self.evaluation_images = evaluation_images
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.selection: Selection = selection
        self.on_unreadable = on_unreadable
        self._preprocessing: Preprocessing | None = None

    @abstractmethod
    def calibration_source(self) -> ImageSource | None:
        """All images that may be calibrated on; None if there are none."""

    @abstractmethod
    def evaluation_source(self) -> LabeledImages | None:
        """All images that may be evaluated on; None if there are none."""

    def prediction_source(self) -> LabeledImages | None:
        """All images that may be predicted on, which need no labels; those of the evaluation by default."""
        return self._evaluation

    def attach(self, preprocessing: Preprocessing) -> None:
        """Tell how images are preprocessed, before any is loaded.

        Args:
            preprocessing: that of the network.
        """
        self._preprocessing = preprocessing

    def calibration_tensor(self, empty: Callable[..., Tensor] = torch.empty) -> Tensor:
        """The calibration images ``(n, 3, height, width)`` float32, in the order of :meth:`calibration_list`.

        Args:
            empty: makes the tensor of a shape that is filled.

        Raises:
            IsvitError: there are too few images, one cannot be read, or one is also evaluated on.
        """
        self._require_disjoint()
        source, chosen, _ = self._calibration
        loader = image_loader(ImageList(source, chosen, self._transform), self.batch_size, self.workers)
        # Filled in place, because joining the batches would hold all images twice.
        images = empty(len(chosen), *self._attached.input_size)
        filled = 0
        for batch, _ in loader:
            images[filled : filled + len(batch)] = batch
            filled += len(batch)
        return images

    def calibration_list(self) -> CalibrationList:
        """Names of the calibration images and the hash over names and contents.

        Raises:
            IsvitError: there are too few images, or one cannot be read.
        """
        return CalibrationList.of(*self._calibration)

    def evaluation_list(self) -> EvaluationList:
        """Number of the images that are evaluated on, and a hash over their names, classes and sizes of their files."""
        images = self._evaluation
        return EvaluationList() if images is None else EvaluationList.of(images, self._evaluated(images))

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of a calibration image."""
        return self._attached.input_size

    @property
    def num_evaluation_images(self) -> int:
        """Number of images that are evaluated on, by all processes together; 0 without evaluation data."""
        return 0 if self._evaluation is None else len(self._evaluated(self._evaluation))

    @property
    def num_prediction_images(self) -> int:
        """Number of images that are predicted on, by all processes together; 0 without any."""
        return 0 if self._prediction is None else len(self._predicted(self._prediction))

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the evaluation data, including those without an image; None without evaluation data."""
        return None if self._evaluation is None else self._evaluation.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of the evaluation data in order; none where they are not known."""
        return () if self._evaluation is None else self._evaluation.class_names

    def predict_names(self) -> tuple[str, ...]:
        """Names of the images in the order of :meth:`predict_dataloader`."""
        images, mine = self._mine_to_predict()
        return tuple(images.source.name(index) for index in mine)

    def test_dataloader(self) -> ImageLoader:
        """Batches ``(n, 3, height, width)`` float32 with labels ``(n,)`` int64, those of this process.

        Raises:
            IsvitError: there are no evaluation images, too few, or one is also calibrated on.
        """
        images, mine = self._mine()
        self._require_disjoint()
        return self._load(images, mine)

    def val_dataloader(self) -> ImageLoader:
        """The same as :meth:`test_dataloader`."""
        return self.test_dataloader()

    def predict_dataloader(self) -> ImageLoader:
        """Batches as those of :meth:`test_dataloader`, with or without true labels.

        Images that were calibrated on may be among them, and where fewer exist than are asked for, all are taken.

        Raises:
            IsvitError: there are no images to predict on.
        """
        return self._load(*self._mine_to_predict())

    @property
    def _attached(self) -> Preprocessing:
        if self._preprocessing is None:
            raise RuntimeError("attach(preprocessing) must be called before images are loaded")
        return self._preprocessing

    @property
    def _transform(self) -> Transform:
        return self._attached.transform()

    @cached_property
    def _calibration_source(self) -> ImageSource | None:
        return self.calibration_source()

    @cached_property
    def _calibration(self) -> tuple[ImageSource, list[int], list[int]]:
        """Source of the calibration images, the indices of those that are used and of those that are passed over."""
        source = self._calibration_source
        if source is None:
            raise IsvitError(
                f"There are no images to calibrate on, expected a source of them: set {self.calibration_option}."
            )
        order = calibration_order(len(source), self.selection, self.seed or 0)
        usable, skipped = "images", list[int]()
        if self.on_unreadable == "skip":
            order, skipped = readable(source, order, self.calibration_images)
            usable = "readable images"
        if len(order) < self.calibration_images:
            raise IsvitError(
                f"{self.calibration_images} calibration images are asked for, but there are {len(order)} {usable}, "
                f"expected at least as many: lower data.calibration_images or change {self.calibration_option}."
            )
        return source, order[: self.calibration_images], skipped

    @cached_property
    def _evaluation(self) -> LabeledImages | None:
        return self.evaluation_source()

    @cached_property
    def _prediction(self) -> LabeledImages | None:
        return self.prediction_source()

    def _load(self, images: LabeledImages, indices: list[int]) -> ImageLoader:
        loaded = ImageList(images.source, indices, self._transform, images.labels)
        return image_loader(loaded, self.batch_size, self.workers)

    def _mine_to_predict(self) -> tuple[LabeledImages, list[int]]:
        """The images to predict on and the indices of those that this process takes."""
        if self._prediction is None:
            raise IsvitError(
                f"There are no images to predict on, expected some, labeled or not: set {self.evaluation_option}."
            )
        return self._prediction, self._share(self._predicted(self._prediction))

    def _predicted(self, images: LabeledImages) -> list[int]:
        """Indices of the images that are predicted on."""
        count = len(images.labels)
        return evenly_spaced(images.labels, min(count, self.evaluation_images or count))

    def _mine(self) -> tuple[LabeledImages, list[int]]:
        """The evaluation images and the indices of those that this process takes."""
        if self._evaluation is None:
            raise IsvitError(
                f"There are no images to evaluate on, expected labeled images: set {self.evaluation_option}."
            )
        return self._evaluation, self._share(self._evaluated(self._evaluation))

    def _share(self, indices: list[int]) -> list[int]:
        """What of ``indices`` this process takes; without padding, unlike a distributed sampler: each counts once."""
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return indices[rank::world_size]

    def _evaluated(self, images: LabeledImages) -> list[int]:
        """Indices of the evaluation images that are used."""
        labels = images.labels
        count = len(labels) if self.evaluation_images is None else self.evaluation_images
        if count > len(labels):
            raise IsvitError(
                f"{count} evaluation images are asked for, but there are {len(labels)}, expected at least as many: "
                "lower data.evaluation_images or leave it out for all."
            )
        return evenly_spaced(labels, count)

    def _require_disjoint(self) -> None:
        """Refuse to evaluate on calibration images.

        All evaluation images count, also where fewer are asked for: a result on some must hold for all.
        """
        if self._overlap is not None:
            twin, location = self._overlap
            raise IsvitError(
                f"The calibration image {twin} is the evaluation image {location}, expected calibration and evaluation "
                f"to share no image: change {self.calibration_option} or {self.evaluation_option}."
            )

    @cached_property
    def _overlap(self) -> tuple[str, str] | None:
        if self._calibration_source is None or self._evaluation is None:
            return None
        source, chosen, _ = self._calibration
        return first_overlap(source, chosen, self._evaluation.source)


def _require_at_least(least: int, option: str, value: int) -> None:
    if value < least:
        raise IsvitError(f"data.{option} is {value}, expected {least} or more: raise data.{option}.")
