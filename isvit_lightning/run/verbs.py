"""The verbs of the command line: their options, and their help."""

from typing import Any, Literal

from lightning.pytorch import Trainer

VERBS = ("fit", "test", "predict", "inspect", "compare", "benchmark", "export")
OF_A_RUN = ("test", "predict", "benchmark", "export")
"""Verbs that a run directory may follow, in place of ``--ckpt_path``."""
Runtime = Literal["simulated", "integer"]
Form = Literal["onnx", "onnx-int4", "openvino", "packed", "hub"]
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

    def test(self, ckpt_path: str | None = None, runtime: Runtime = "simulated") -> None:  # type: ignore[override]
        """Measure a finished run: accuracy of a classifier and its distance to the float one, or average precision.

        Args:
            ckpt_path: run directory or its quantized.safetensors; none measures the float network.
            runtime: simulated computes in float on the grids; integer multiplies codes of 8 bits.
        """

    def predict(self, ckpt_path: str | None = None, runtime: Runtime = "simulated") -> None:  # type: ignore[override]
        """Write what is found on each evaluation image: a table of classes, or pictures of objects.

        A classifier needs no labels: data.evaluation may name any folder of images, flat or nested.

        Args:
            ckpt_path: run directory or its quantized.safetensors; none predicts with the float network.
            runtime: simulated computes in float on the grids; integer multiplies codes of 8 bits.
        """

    def inspect(self, **kwargs: Any) -> None:
        """Print units, norms, quantizers and the memory of the caches, and calibrate nothing."""

    def compare(self, methods: str = "all", bits: str | None = None, seeds: str = "0", choose_on: int = 0) -> None:
        """Calibrate and measure several recipes under the same conditions, and write one table and its pictures.

        The recipe of the configuration is not used. Given again, the command goes on where it was stopped.

        Args:
            methods: recipes by name or path, with commas between them, or all that come with the program.
            bits: widths such as w3a3,w4a4; none takes those of model.bits.
            seeds: seeds of the draws of the steps, such as 0,1,2; figures are then means with standard deviations.
            choose_on: number of the calibration images that no recipe is calibrated on, so that the one with the lowest
                divergence from the float network on them can be chosen without a look at the evaluation; 0 for none.
        """

    def export(self, format: Form, ckpt_path: str | None = None, output: str | None = None) -> None:  # noqa: A002
        """Write a finished run in the form of another engine, check it and run it.

        Args:
            format: onnx holds integers in 8 bits, for ONNX Runtime and others; openvino is the same for OpenVINO;
                onnx-int4 has weights of 4 bits and computes in float; packed is one file of codes; hub a folder for the
                Hugging Face hub.
            ckpt_path: run directory or its quantized.safetensors.
            output: folder to write to; null takes export in the run directory.
        """

    def benchmark(
        self,
        ckpt_path: str | None = None,
        threads: str = "1",
        batches: str = "1,8",
        repeats: int = 20,
        engines: str = "pytorch,onnxruntime,openvino",
        accuracy: bool = True,
        profile: bool = False,
    ) -> None:
        """Measure speed, size, memory and accuracy of a finished run in each engine, beside its float network.

        All forms take turns in one process. Writes benchmark.json and benchmark.md into the run directory.

        Args:
            ckpt_path: run directory.
            threads: numbers of threads with commas between them.
            batches: numbers of images at once with commas between them.
            repeats: batches that are timed of each form.
            engines: some of pytorch, onnxruntime and openvino with commas between them.
            accuracy: measure each form on the evaluation images, which takes as long as as many tests.
            profile: list the products that are ones of floats in each engine, and why, and count the codes of the
                integer runtime that differ from the simulated ones.
        """
