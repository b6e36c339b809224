"""The extras of himap-vram: which packages each brings, and what to say where one is missing."""

from __future__ import annotations

import importlib.util

# For each extra what is imported, and the package that brings it. Of `llava`, what every program needs.
PACKAGES = {
    "llava": {
        "PIL": "pillow",
        "safetensors": "safetensors",
        "tokenizers": "tokenizers",
        "tqdm": "tqdm",
        "transformers": "transformers",
    },
    "lora": {"peft": "peft"},
    "meters": {"pynvml": "nvidia-ml-py", "psutil": "psutil"},
    "history": {"pytest_benchmark": "pytest-benchmark"},
}


def missing(extra: str) -> str:
    """ "tqdm is not installed: pip install 'himap-vram[llava]'"; "" where all of the extra's packages are there."""
    names = [package for module, package in PACKAGES[extra].items() if importlib.util.find_spec(module) is None]
    if not names:
        return ""
    *others, last = names
    listed = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    return f"{listed} not installed: {remedy(extra)}"


def remedy(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'himap-vram[{extra}]'"
