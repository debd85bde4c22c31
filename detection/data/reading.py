"""Reading annotation files in the format of COCO."""

import json
from pathlib import Path
from typing import Any

from detection.data.annotations import CocoAnnotations
from isvit_lightning.errors import IsvitError, first_line


def read_annotations(path: Path, option: str) -> CocoAnnotations:
    """Read an annotation file.

    Args:
        path: JSON file in the format of COCO's instances.
        option: option that holds the path, for messages.

    Raises:
        IsvitError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _require_coco(content)
    except (OSError, ValueError, TypeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else first_line(error)
        raise IsvitError(
            f"The annotations {path} cannot be read ({reason}), expected JSON in COCO's format with images, "
            f"annotations and categories: change {option}."
        ) from None
    return CocoAnnotations(str(path), content)


def _require_coco(content: Any) -> None:
    """Look up every key that is used later.

    Raises:
        ValueError: one is missing.
    """
    for key, fields in (
        ("images", ("id", "file_name", "height", "width")),
        ("categories", ("id", "name")),
        ("annotations", ("id", "image_id", "category_id", "bbox", "area")),
    ):
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"it lacks {key}")
        for entry in content[key]:
            missing = [field for field in fields if field not in entry]
            if missing:
                raise ValueError(f"one of its {key} lacks {missing[0]}")
