"""Lists packages that tests of a commit imported from elsewhere: their figures would be those of other code.

A plugin of pytest for `vram bisect`, which copies this file to where any commit's tests find it: it needs the standard
library alone. It reads three environment variables: VRAM_COMMIT, the folder of the commit; VRAM_CHECKOUT, the folder
of the user's own checkout; VRAM_IMPORTED, the file to add lines "name<tab>path" to.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path


def pytest_unconfigure() -> None:
    """Add what this process imported; pytest-xdist's workers add theirs."""
    commit, checkout = Path(os.environ["VRAM_COMMIT"]), Path(os.environ["VRAM_CHECKOUT"])
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if "." not in name}
    with Path(os.environ["VRAM_IMPORTED"]).open("a", encoding="utf-8") as lines:
        lines.writelines(f"{name}\t{file}\n" for name, file in elsewhere(files, commit, checkout, own(commit)).items())


def elsewhere(files: Mapping[str, str | None], commit: Path, checkout: Path, own: Iterable[str]) -> dict[str, str]:
    """Modules of the project that are not the commit's: those in `checkout`, and those called as one of `own`.

    `files` are the files of top-level modules by name. An environment that lives in the checkout is no part of it.
    """
    found = {}
    for name, file in files.items():
        path = Path(file or "").resolve()
        if file is None or path.is_relative_to(commit.resolve()):
            continue
        environment = path.is_relative_to(Path(sys.prefix).resolve())
        if name in own or (path.is_relative_to(checkout.resolve()) and not environment):
            found[name] = str(path)
    return found


def own(commit: Path) -> set[str]:
    """Names of the packages in the commit's folder and in folders of that, without hidden ones."""
    return {
        package.parent.name
        for pattern in ("*/__init__.py", "*/*/__init__.py")
        for package in commit.glob(pattern)
        if not (package.parents[1] / "__init__.py").exists() and ".git" not in package.parts
    }
