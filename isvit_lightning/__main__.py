"""``python -m isvit_lightning`` is ``isvit``."""

import sys

from isvit_lightning.program import main

if __name__ == "__main__":
    sys.exit(main())
