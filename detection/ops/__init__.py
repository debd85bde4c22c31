"""Stand-in for the compiled operators of mmcv, made of torchvision's."""

from detection.ops.extension import extension_module
from detection.ops.nms import nms, softnms
from detection.ops.roi_align import roi_align_backward, roi_align_forward

__all__ = ["extension_module", "nms", "roi_align_backward", "roi_align_forward", "softnms"]
