"""Hook of mkdocs.yml: a link out of `docs/`, which works in the repository, goes to the repository's site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_OUT = re.compile(r"\]\(\.\./([^)\s]+)\)")


def on_page_markdown(markdown: str, *, config: Any, **_: object) -> str:
    """The page's Markdown, whose links to other files of the repository are absolute.

    Raises ValueError for a link to a file that is not there: MkDocs only checks links between its own pages.
    """
    root = Path(config.config_file_path).parent

    def absolute(link: re.Match[str]) -> str:
        path = link[1].partition("#")[0]
        if not (root / path).exists():
            raise ValueError(f"a link must lead to a file of the repository, got ../{path}")
        return f"]({config.repo_url.rstrip('/')}/blob/main/{link[1]})"

    return _OUT.sub(absolute, markdown)
