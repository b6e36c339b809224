"""The description that a package index shows: README.md with its links made absolute. All else is in pyproject.toml."""

import re
from pathlib import Path

REPOSITORY = "https://github.com/himap-vram/himap-vram"
_RELATIVE = r"(?!https?:|#|mailto:)([^)\"\s]+)"


def description() -> str:
    """README.md as an index needs it: files of this repository at their address there, pictures as pictures."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(rf"(!\[[^\]]*\]\(){_RELATIVE}", rf"\1{REPOSITORY}/raw/main/\2", text)
    text = re.sub(rf"(\]\(){_RELATIVE}", rf"\1{REPOSITORY}/blob/main/\2", text)
    text = re.sub(rf"(\b(?:src|srcset)=\"){_RELATIVE}", rf"\1{REPOSITORY}/raw/main/\2", text)
    return re.sub(rf"(\bhref=\"){_RELATIVE}", rf"\1{REPOSITORY}/blob/main/\2", text)


if __name__ == "__main__":
    from setuptools import setup  # the build brings it; tests of the description need it not

    setup(long_description=description(), long_description_content_type="text/markdown")
