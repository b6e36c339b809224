"""Categories that a project declares for code of its own: what functions of these modules allocate is of that category.

Imports no torch.
"""

from __future__ import annotations

import sys

_modules: dict[str, tuple[str, ...]] = {}  # names of modules, by category


def categorize(category: str, *modules: str) -> None:
    """Name the category of all memory that code of `modules` ("project.scoring") allocates, in breakdowns of peaks.

    It counts where no owner is known: weights stay weights. Called again, it replaces what was said of the category.
    Raises TypeError for what is no text.
    """
    for name in (category, *modules):
        if not isinstance(name, str) or not name:
            raise TypeError(f'categorize takes texts, as in categorize("pruning", "project.scoring"), got {name!r}')
    _modules[category] = modules


def declared_files() -> dict[str, frozenset[str]]:
    """Source files by category, of the modules that are imported."""
    return {
        category: frozenset(
            str(sys.modules[name].__file__) for name in names if getattr(sys.modules.get(name), "__file__", None)
        )
        for category, names in _modules.items()
    }
