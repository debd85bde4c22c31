"""The finished network as one file: packed codes, grids, and all that is needed to build it again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn
from typing_extensions import override

from isvit_lightning.errors import IsvitError, first_line
from isvit_lightning.export.card import card_of
from isvit_lightning.export.hub import CARD, RESULTS, WEIGHTS, first_sentence, locate, read_results, write_config
from isvit_lightning.export.quantization_config import quantization_config
from isvit_lightning.export.sealed import HASH, read_packed, sealed, write_packed
from isvit_lightning.export.weights import fill, pack_state
from isvit_lightning.networks import open_by_specs, require_calibrated, specs_of, switch
from isvit_lightning.quantizers import Spec
from isvit_lightning.sources.architecture import Architecture
from isvit_lightning.sources.preprocessing import Preprocessing
from isvit_lightning.storage.files import write_json

_Choices = TypeVar("_Choices", Architecture, Preprocessing)


class QuantizedNetwork(nn.Module, ModelHubMixin):
    """A calibrated network with fixed grids, computed in float on those grids.

    Args:
        model: network as the steps leave it.
        architecture: how to build its float form; None where that is not known.
        preprocessing: how its images are prepared.
        record: what it was made with, plain values that are stored with it and not read again.
        results: what its run measured, the content of ``results.json``; None where nothing is known.

    Raises:
        IsvitError: a quantizer is not calibrated.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture | None,
        preprocessing: Preprocessing | None,
        record: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        switch(model, weights=True, activations=True)
        require_calibrated(model)
        self.model = model.eval()
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.record = dict(record or {})
        self.results = None if results is None else dict(results)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of ``images (batch, 3, height, width)``."""
        logits: torch.Tensor = self.model(images)
        return logits

    @property
    def specs(self) -> dict[str, Spec]:
        """Format, width, granularity and role of each quantizer by path."""
        return specs_of(self.model)

    @property
    def description(self) -> dict[str, Any]:
        """What is stored beside the tensors, plain values."""
        return {
            "specs": {name: spec.as_dict() for name, spec in self.specs.items()},
            "architecture": self.architecture and dataclasses.asdict(self.architecture),
            "preprocessing": self.preprocessing and dataclasses.asdict(self.preprocessing),
            "record": self.record,
            "quantization_config": quantization_config(self.model),
        }

    @property
    def sha256(self) -> str:
        """Hash of tensors and description, which packed files of the network carry."""
        return str(sealed(pack_state(self.model), self.description)[HASH])

    def save(self, path: str | Path) -> None:
        """Write the network: weights as packed codes, everything else in float32.

        Raises:
            IsvitError: the file cannot be written.
        """
        write_packed(Path(path), pack_state(self.model), self.description)

    @override
    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write a folder as a hub holds it: packed network, configuration, model card, and what was measured.

        Args:
            save_directory: the folder; files of these names in it are replaced.
            **options: of ``ModelHubMixin.save_pretrained``; ``model_card_kwargs`` are those of
                :meth:`generate_model_card`.

        Raises:
            IsvitError: it cannot be written.
        """
        try:
            return super().save_pretrained(save_directory, **options)
        except OSError as error:
            raise IsvitError(
                f"Cannot write {save_directory}: {error.strerror or first_line(error)}; expected a folder that can be "
                "written: name another one."
            ) from None

    @override
    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the folder of :meth:`save_pretrained`.

        Args:
            repo_id: repository, ``owner/name``; it is made where there is none.
            **options: of ``ModelHubMixin.push_to_hub``, such as private, token and commit_message.

        Returns:
            Address of the commit.

        Raises:
            IsvitError: nothing answers, or the upload is refused.
        """
        try:
            return super().push_to_hub(repo_id, **options)
        except IsvitError:
            raise
        except Exception as error:  # noqa: BLE001 - the client raises errors of its own and of the libraries below it
            raise IsvitError(
                f"{repo_id} could not be uploaded ({first_sentence(error)}), expected one that may be written: "
                "correct the name, log in with hf auth login, or pass token."
            ) from None

    @override
    def generate_model_card(self, **options: Any) -> ModelCard:
        """The model card: numbers of the results, bits, recipe, limits, and how to load the network in each engine.

        Args:
            **options: license, as the hub spells it; left out of the card where it is not given.
        """
        name = self.record.get("network") or (self.architecture.name if self.architecture else "A vision transformer")
        tag = (self.architecture or Architecture).pipeline_tag
        return ModelCard(card_of(self.model, str(name), tag, self.record, self.results, **options))

    @override
    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory / WEIGHTS)
        write_config(save_directory, self.model, self.description)
        if self.results is not None:
            write_json(save_directory / RESULTS, self.results)
        else:
            (save_directory / RESULTS).unlink(missing_ok=True)
        # The mixin writes a card only where there is none; an old one would tell the numbers of another network.
        (save_directory / CARD).unlink(missing_ok=True)

    @classmethod
    @override
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> "QuantizedNetwork":
        """The same as :func:`load`, with the hub's options.

        Args:
            pretrained_model_name_or_path: path, or the owner and name of a repository.
            force_download: fetch anew what was fetched before.
            token: of the hub.
            cache_dir: where fetched files are kept.
            local_files_only: fetch nothing.
            revision: branch, tag or commit.
            **options: other arguments of :func:`load`.

        Raises:
            IsvitError: as :func:`load`.
        """
        # The mixin's own would read config.json without a check and hand its sections to __init__.
        fetching = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
        fetching |= {"local_files_only": local_files_only, "revision": revision}
        return _load(locate(pretrained_model_name_or_path, **fetching), **options)


def load(
    path: str | Path,
    network: nn.Module | None = None,
    architecture_type: type[Architecture] = Architecture,
    preprocessing_type: type[Preprocessing] = Preprocessing,
) -> QuantizedNetwork:
    """Load a network that :meth:`QuantizedNetwork.save` or its ``save_pretrained`` wrote.

    Args:
        path: the file; the run directory that holds it as ``quantized.safetensors``; a folder of a hub, which holds it
            as ``model.safetensors``; or the name of a repository of the Hugging Face hub, ``owner/name``, which is
            fetched.
        network: a float network of the same architecture; needed only where the file does not name one.
        architecture_type: what builds the network; another one than timm's for other kinds of networks.
        preprocessing_type: what prepares its images.

    Returns:
        The network, with logits identical to those of the saved one.

    Raises:
        IsvitError: the file is missing, damaged, changed, of another program or version, or of another network.
    """
    return _load(locate(path), network, architecture_type, preprocessing_type)


def _load(
    path: Path,
    network: nn.Module | None = None,
    architecture_type: type[Architecture] = Architecture,
    preprocessing_type: type[Preprocessing] = Preprocessing,
) -> QuantizedNetwork:
    """The network of the packed file ``path``."""
    tensors, metadata = read_packed(path)
    try:
        specs = {str(name): Spec.of(values) for name, values in metadata["specs"].items()}
        architecture = _optional(architecture_type, metadata["architecture"])
        preprocessing = _optional(preprocessing_type, metadata["preprocessing"])
        record = dict(metadata["record"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IsvitError(
            f"{path} is damaged (its description lacks or garbles {first_line(error)}), expected a "
            "quantized.safetensors of a finished run: check --ckpt_path."
        ) from error
    if network is None:
        if architecture is None:
            raise IsvitError(f"{path} does not name its architecture; pass the float network as `network`.")
        network = architecture.build()
    try:
        opened = open_by_specs(network, specs, tensors)
    except IsvitError as error:
        raise IsvitError(f"{path}: {error}") from None
    fill(opened.model, tensors, path)
    return QuantizedNetwork(opened.model, architecture, preprocessing, record, read_results(path))


def _optional(kind: type[_Choices], values: Any) -> _Choices | None:
    """The same as :func:`_choices`, where null stands for nothing known."""
    return None if values is None else _choices(kind, values)


def _choices(kind: type[_Choices], values: Any) -> _Choices:
    """A frozen dataclass from its JSON form; unknown keys are refused."""
    if not isinstance(values, dict):
        raise IsvitError(
            f"The file holds {values!r} in place of {kind.__name__}, expected its values by name: it is damaged, or "
            "was written by another version; calibrate again."
        )
    known = {field.name for field in dataclasses.fields(kind)}
    if set(values) - known:
        raise IsvitError(
            f"The file holds the unknown key {min(set(values) - known)!r} for {kind.__name__}, expected "
            f"{sorted(known)}: it was written by another version; install that one or calibrate again."
        )
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return kind(**given)
