"""The pytest plugin: options, the fixture `vram`, and the hooks. Only modules of this folder know pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vram.plugin.forked import Forked
from vram.plugin.history import Keeping
from vram.plugin.markers import HELP
from vram.plugin.measuring import Measuring
from vram.plugin.options import add_options, check_options, given_arguments, in_rootdir
from vram.plugin.reporting import Reporting

if TYPE_CHECKING:
    from vram.session import VramSession


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the options and their ini twins."""
    config = pluginmanager.getplugin("pytestconfig")
    add_options(parser, given_arguments(config) if config is not None else ())


def pytest_configure(config: pytest.Config) -> None:
    """Refuse values that can't be read, and register the markers and hooks."""
    check_options(config)
    in_rootdir(config)
    for text in HELP:
        config.addinivalue_line("markers", text)
    measuring = Measuring(config)
    config.pluginmanager.register(measuring, "vram-session")
    reporting = Reporting(config, measuring)
    config.pluginmanager.register(reporting, "vram-report")
    config.pluginmanager.register(Forked(config, measuring, reporting), "vram-forked")
    config.pluginmanager.register(Keeping(config, measuring), "vram-history")


@pytest.fixture(scope="session")
def vram(request: pytest.FixtureRequest) -> VramSession:
    """Replay samples, judge growth and peaks: see `vram.session.VramSession`."""
    measuring: Measuring = request.config.pluginmanager.getplugin("vram-session")
    return measuring.start()
