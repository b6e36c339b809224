"""A throwaway project with this project's commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.source import PACKAGES

CI = Path(__file__).parents[2] / "ci"


class Project:
    """A throwaway copy of the commands, in an environment that is set up already. `log` has how stubs were called."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "log"
        shutil.copytree(CI, root / "ci", ignore=shutil.ignore_patterns("__pycache__", "budgets"))
        # The commands run it before anything is installed.
        (root / "vram" / "gating").mkdir(parents=True)
        shutil.copy(PACKAGES / "vram" / "gating" / "supervise.py", root / "vram" / "gating")
        (root / "pyproject.toml").write_text("")
        (root / "pytest.ini").write_text("[pytest]\n")
        self.environment = root / "environment"
        (self.environment / "bin").mkdir(parents=True)
        for name, starts in (("python", ""), ("vram", " -m vram")):
            self.program(self.environment / "bin" / name, f'exec "{sys.executable}"{starts} "$@"')
        pins = (root / "pyproject.toml").read_bytes() + (root / "ci" / "constraints.txt").read_bytes()
        packed = subprocess.run(["cksum"], input=pins, capture_output=True, check=True)  # noqa: S607
        (self.environment / ".himap-vram-setup").write_text(f"{packed.stdout.decode().strip()} {root}\n")

    def program(self, path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def stub(self, path: Path, name: str) -> None:
        """A program that logs its arguments and exits with the code in the environment variable `name`."""
        self.program(path, f'echo "$0" "$@" >> "{self.log}"\nexit "${name}"')

    def run(self, command: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the `ci` folder to its end."""
        known = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "VRAM_"))}
        return subprocess.run(
            [self.root / "ci" / command, *arguments],
            cwd=self.root,
            env={**known, "VIRTUAL_ENV": str(self.environment), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
