"""Build the source distribution, and the wheel from it, and unpack both: tests then run on what a user installs.

    python ci/built.py [FOLDER]     (default: build)

FOLDER/dist has the two files, FOLDER/wheel the unpacked wheel, for PYTHONPATH, and FOLDER/tested what the source
distribution has besides the packages: tests, benchmarks, commands, documentation. Tests that run there cannot import
the packages of the checkout. Fails where the wheel lacks a file of the packages, or has another.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("himap", "llava", "vram")


def build(folder: Path) -> None:
    """Build and unpack into `folder`. Raises SystemExit with the reason where that fails."""
    dist, wheel, tested = folder / "dist", folder / "wheel", folder / "tested"
    for old in (dist, wheel, tested):
        shutil.rmtree(old, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if ended.returncode:
        raise SystemExit(f"ci/built.py: the build failed\n{ended.stdout}{ended.stderr}")
    (wheel_file,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(wheel)  # noqa: S202 - ours, built a moment ago
    if wrong := differences(files_of(ROOT), files_of(wheel)):
        raise SystemExit(f"ci/built.py: the wheel is not the packages: {', '.join(wrong)}")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    (folder / source.name.removesuffix(".tar.gz")).rename(tested)
    for package in PACKAGES:
        shutil.rmtree(tested / package)
    _link(tested / "reports", ROOT / "reports")  # where tests leave what CI keeps
    _link(folder / "shared", ROOT.parent / "shared")  # data that some tests look for beside the checkout


def files_of(folder: Path) -> set[str]:
    """Files of the packages in `folder`, as paths relative to it."""
    paths = (path for package in PACKAGES for path in (folder / package).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in paths if "__pycache__" not in path.parts}


def differences(expected: set[str], built: set[str]) -> list[str]:
    """ "vram/page.css is missing", "vram/old.py is too much", one for each file."""
    missing = [f"{name} is missing" for name in sorted(expected - built)]
    return missing + [f"{name} is too much" for name in sorted(built - expected)]


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink() and target.is_dir():
        link.symlink_to(target, target_is_directory=True)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve())
