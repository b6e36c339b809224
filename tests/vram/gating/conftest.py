"""Projects of strangers. pytest runs in this process, where the command would start one."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from vram import cli
from vram.gating import supervise

UNUSED = ("cacheprovider", "xdist", "hypothesispytest", "asyncio")
QUICK = ("--vram-device", "cpu", *(f"-pno:{name}" for name in UNUSED))


class Stranger:
    """A project; `gate` returns the exit code, the last line and all that was printed."""

    def __init__(self, pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
        self.pytester, self.root, self._capsys = pytester, pytester.path, capsys
        self.write("tests/conftest.py", "def pytest_benchmark_generate_machine_info(): return {}\n")

    def write(self, name: str, text: str) -> None:
        """Write a file, two seconds after it was written last: what was compiled of a file is used again where it is of
        the same second and as long."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        last = path.stat().st_mtime if path.exists() else 0.0
        path.write_text(text, encoding="utf-8")
        written = max(path.stat().st_mtime, last + 2)
        os.utime(path, (written, written))

    def command(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, last line and all lines of `vram ...`."""
        self._capsys.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self._capsys.readouterr()
        print(out, err)
        return code, (out.splitlines() or [""])[-1], out + err

    def gate(self, *arguments: str) -> tuple[int, str, str]:
        return self.command("gate", *QUICK, *arguments)


@pytest.fixture
def stranger(
    pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Stranger:
    def run(command: Sequence[str]) -> tuple[int, list[int]]:
        return int(pytester.runpytest_inprocess(*command[3:]).ret), []

    monkeypatch.setattr(supervise, "run", run)
    monkeypatch.delenv("CI", raising=False)
    return Stranger(pytester, capsys)
