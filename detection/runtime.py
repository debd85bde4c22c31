"""The one place that imports mmdet."""

import importlib.util
import sys
from importlib import import_module

from detection.ops import extension_module
from detection.ops.extension import NAME
from isvit_lightning.errors import IsvitError


def import_mmdet() -> None:
    """Make mmdet importable and its modules known by name; call it before importing anything of mmdet.

    mmdet needs the compiled operators of mmcv. Where the full mmcv is not installed, a module made of torchvision's
    operators takes their place; where it is, that one is used.

    Raises:
        IsvitError: mmdet, mmcv or mmengine is not installed.
    """
    try:
        if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
            sys.modules[NAME] = extension_module()
        register = import_module("mmdet.utils").register_all_modules
    except ImportError as error:
        raise IsvitError(
            f"Detection needs a package that is missing ({error}), expected mmdet 3.3, mmcv-lite, mmengine and "
            'pycocotools: run pip install "isvit-lightning[detection]".'
        ) from None
    register(init_default_scope=True)
