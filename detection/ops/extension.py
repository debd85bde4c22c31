"""A module that answers for ``mmcv._ext``: a few operators, and a clear refusal for all others."""

from types import ModuleType
from typing import Any, NoReturn

from detection.ops.nms import nms, softnms
from detection.ops.roi_align import roi_align_backward, roi_align_forward
from isvit_lightning.errors import IsvitError

NAME = "mmcv._ext"


class _Extension(ModuleType):
    """Offers every name, as mmcv asks for all of them when it is imported; most can only be refused."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise IsvitError(
                f"The detector calls mmcv's compiled operator {name}, which mmcv-lite lacks, expected one of nms, "
                "softnms and roi_align: install the full mmcv in its place, or choose a detector that does without."
            )

        return missing


def extension_module() -> ModuleType:
    """The stand-in, not yet installed anywhere."""
    module = _Extension(NAME)
    for operator in (nms, softnms, roi_align_forward, roi_align_backward):
        setattr(module, operator.__name__, operator)
    return module
