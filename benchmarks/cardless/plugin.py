"""A pytest plugin: tests run on whole numbers and truths that are there, though no kernel is."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from benchmarks.cardless.values import Values


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Generator[None, object, object]:
    """Around all tests."""
    with Values():
        return (yield)
