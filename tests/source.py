"""Where the project's files are, and its packages: in the checkout, or in the built wheel that is tested."""

from __future__ import annotations

import os
from pathlib import Path

import vram

ROOT = Path(__file__).parents[1]
PACKAGES = Path(vram.__file__).parents[1]  # the folder that has the packages: not ROOT where the built wheel is tested
PYTHON_PATH = os.pathsep.join(map(str, dict.fromkeys([PACKAGES, ROOT])))
