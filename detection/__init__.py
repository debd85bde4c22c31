"""The mmdet adapter; see the extra `detection`."""
