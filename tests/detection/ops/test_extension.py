import pytest

from detection.ops import extension_module, nms, softnms
from isvit_lightning.errors import IsvitError


def test_known_operators_are_torchvisions() -> None:
    module = extension_module()
    assert module.nms is nms
    assert module.softnms is softnms


def test_any_other_is_offered_and_refused_by_name() -> None:
    module = extension_module()
    assert hasattr(module, "deform_conv_forward")  # mmcv asks when it is imported
    with pytest.raises(IsvitError, match="deform_conv_forward.*install the full mmcv"):
        module.deform_conv_forward(1, offset=2)


def test_it_is_no_package() -> None:
    assert not hasattr(extension_module(), "__path__")
