"""The test that runs, for explanations: what was alive when it began, and what it works with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vram.explanation.earlier import Earlier
    from vram.session import RunningTest


class RunningTests:
    """Takes note of what is alive when tests that record begin; of others nothing."""

    def __init__(self) -> None:
        self._collection: Earlier | None = None
        self._fixtures: dict[int, str] = {}  # names, by the id of what keeps their values

    def collected(self) -> None:
        """Modules of tests are imported: what they keep is no test's."""
        if "torch" in sys.modules:
            from vram.explanation.earlier import Earlier

            self._collection = Earlier()

    def made(self, fixture: pytest.FixtureDef[object]) -> None:
        """A fixture has a value, which pytest keeps by its definition, which lives as long as the session."""
        self._fixtures[id(fixture)] = f"the {fixture.scope} fixture `{fixture.argname}`"

    def begin(self, item: pytest.Item) -> RunningTest | None:
        """A test begins; None for one that does not record, or before anything of torch's can be alive."""
        if "vram" not in getattr(item, "fixturenames", ()) or "torch" not in sys.modules:
            return None
        from vram.explanation.earlier import Earlier
        from vram.session import RunningTest

        return RunningTest(Earlier(self._collection), lambda: _used(item), self._fixtures)


def _used(item: pytest.Item) -> list[object]:
    """The values of its fixtures, and what its class has."""
    classes = getattr(getattr(item, "cls", None), "__mro__", ())[:-1]
    values = [value for each in classes for value in vars(each).values()]
    return [*getattr(item, "funcargs", {}).values(), *values]
