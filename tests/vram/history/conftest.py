"""For the tests of the history: those that start a pytest inside do so in a small heap."""

from tests.vram.plugin.conftest import _small_heap  # noqa: F401 - a fixture
