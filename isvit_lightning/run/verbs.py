"""The verbs of the command line: their options, and their help."""

from typing import Any

from lightning.pytorch import Trainer

VERBS = ("fit", "test", "predict", "inspect", "compare")
_BASELINES = ["round_to_nearest", "repq"]


class Verbs(Trainer):
    """The options of the verbs, and their help; Lightning's own trainer trains."""

    def fit(  # type: ignore[override]
        self,
        evaluate: bool = True,
        baselines: list[str] = _BASELINES,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Calibrate a network and write its run directory.

        Args:
            evaluate: end with an evaluation and the table.
            baselines: recipes that are measured beside the result, by name or path; [] for none.
            resume: go on with the interrupted run in the run directory; starts afresh where there is none.
            overwrite: set a run of another configuration in the run directory aside, as one of the same configuration
                that is not resumed always is, in a folder previous-1 below; false refuses to write there.
        """

    def test(self, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Measure a finished run: accuracy of a classifier and its distance to the float one, or average precision.

        Args:
            ckpt_path: run directory or its quantized.safetensors; none measures the float network.
        """

    def predict(self, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Write what is found on each evaluation image: a table of classes, or pictures of objects.

        A classifier needs no labels: data.evaluation may name any folder of images, flat or nested.

        Args:
            ckpt_path: run directory or its quantized.safetensors; none predicts with the float network.
        """

    def inspect(self, **kwargs: Any) -> None:
        """Print units, norms, quantizers and the memory of the caches, and calibrate nothing."""

    def compare(self, methods: str = "all", bits: str | None = None, seeds: str = "0") -> None:
        """Calibrate and measure several recipes under the same conditions, and write one table.

        The recipe of the configuration is not used. Given again, the command goes on where it was stopped.

        Args:
            methods: recipes by name or path, with commas between them, or all that come with the program.
            bits: widths such as w3a3,w4a4; none takes those of model.bits.
            seeds: seeds of the draws of the steps, such as 0,1,2; figures are then means with standard deviations.
        """
