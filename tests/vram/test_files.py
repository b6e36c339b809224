from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vram.files import atomic_write, complete_file


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    """A new one gets what the user's umask leaves."""
    path = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        atomic_write(path, b"old")
    finally:
        os.umask(mask)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"old", 0o640)
    path.chmod(0o664)
    atomic_write(path, b"new")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o664)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_what_goes_wrong_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: BaseException
) -> None:
    """A full disk, or an interruption, before the file is complete or before it has its name."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail) if function == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(error)):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_never_written_into(tmp_path: Path) -> None:
    """It may be a second name of a file that is complete."""
    known, left = tmp_path / "known", tmp_path / "left"
    known.write_bytes(b"old")
    left.hardlink_to(known)
    with complete_file(left, b"new") as complete:
        assert complete.read_bytes() == b"new"
        assert known.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [known]
