"""Failed tests: their frames keep no tensors that a later test is billed for, and nobody misses what was in them."""

from __future__ import annotations

import pytest

FAILS = """
    import unittest
    import pytest, torch

    def kib(n):
        return torch.zeros(256 * n)

    def fails():
        deep = kib(1)
        raise ValueError("deep")

    def hides():
        __tracebackhide__ = True
        fails()

    def before(vram):
        return vram.replay(lambda n: None, [1], laps=1).before["requested"]

    def test_begins(vram, request):
        request.config.begins = before(vram)

    def test_chained():
        try:
            fails()
        except ValueError as error:
            other = kib(2)
            raise KeyError("chained") from error

    def test_context():
        try:
            fails()
        except ValueError:
            other = kib(2)
            raise KeyError("context")

    def test_group():
        errors = []
        for _ in range(2):
            try:
                fails()
            except ValueError as error:
                errors.append(error)
        raise ExceptionGroup("several", [ExceptionGroup("inner", errors)])

    class TestUnit(unittest.TestCase):
        def tearDown(self):
            also = kib(4)
            fails()
        def test_unit(self):
            self.attribute = kib(4)
            self.assertEqual(1, 2)

    @pytest.fixture
    def broken():
        local = kib(8)
        fails()
    def test_setup(broken): pass

    @pytest.fixture
    def broken_later():
        local = kib(16)
        yield
        fails()
    def test_teardown(broken_later): pass

    @pytest.fixture(scope="session")
    def broken_session():
        session_local = kib(32)
        hides()
    def test_session(broken_session): pass
    def test_session_again(broken_session): pass

    @pytest.mark.xfail
    def test_expected():
        local = kib(64)
        fails()

    def test_skips():
        local = kib(128)
        pytest.skip()

    @pytest.fixture(scope="session")
    def suspended():
        try:
            fails()
        except ValueError as error:
            caught = error
        yield caught
        print("torn down")
    def test_suspended(suspended):
        raise suspended

    @pytest.mark.flaky(reruns=2)
    def test_flaky():
        local = kib(256)
        fails()

    def test_ends(vram, request):
        assert before(vram) == request.config.begins
"""


def test_failed_tests_keep_nothing(pytester: pytest.Pytester) -> None:
    """Whatever pytest or pytest-rerunfailures keeps of them; reports are as ever, and fixtures are torn down."""
    pytester.makepyfile(FAILS)
    plugins = [f"-pno:{name}" for name in ("xdist", "hypothesispytest", "anyio", "cacheprovider", "benchmark")]
    result = pytester.runpytest_inprocess("-s", "--showlocals", "--vram-device", "cpu", *plugins)
    result.assert_outcomes(passed=3, failed=6, errors=5, skipped=1, xfailed=1)
    assert "FAILED test_failed_tests_keep_nothing.py::test_ends" not in result.stdout.str()
    result.stdout.fnmatch_lines_random(["*torn down*", "session_local = tensor(*", "deep *= tensor(*"])


def test_a_session_fixture_that_failed_reads_the_same_in_every_test(pytester: pytest.Pytester) -> None:
    """pytest raises its exception again: frames that hide themselves stay hidden."""
    pytester.makepyfile(FAILS)
    result = pytester.runpytest_inprocess("-k", "begins or test_session", "--vram-device", "cpu", "-p", "no:xdist")
    first, again = result.stdout.str().split("ERROR at setup of test_session")[1:]
    assert "raise ValueError" in first
    assert "raise ValueError" in again
    assert "def hides" not in first + again
