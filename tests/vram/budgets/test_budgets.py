"""Budgets: files that people write and comment, changed by an accept alone, and by that only where they should be."""

from __future__ import annotations

import multiprocessing
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vram.budgets.accepted import Accepted, diff, merged, reconciled, record
from vram.budgets.file import Budget, accept, read_budget
from vram.errors import NotRecorded
from vram.session import SessionOptions, VramSession

WRITTEN = """\
# What the cards of our runners hold.
# Ask the inference team before raising one.

[[budget]]  # the laptop
mode = "himap"
peak_bytes = 1_000  # since June

# bigger than it should be: see the note on eager attention
[[ budget ]]
"mode" = 'baseline'
dtype = "float16"
'peak_bytes'=0x7D0

[notes]
text = '''
[[budget]] is what a table is called
peak_bytes = 5
'''
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "cards.toml"
    path.write_text(WRITTEN)
    return path


def test_a_figure_is_changed_and_nothing_else(written: Path) -> None:
    """Comments, order, spelling and what is no budget stay as people wrote them."""
    accept(read_budget(written, mode="himap"), 1001)
    assert written.read_text() == WRITTEN.replace("1_000", "1001")
    accept(read_budget(written, mode="baseline", dtype="float16"), 7)
    assert written.read_text() == WRITTEN.replace("1_000", "1001").replace("0x7D0", "7")


def test_a_new_key_is_one_table_more(written: Path) -> None:
    """Before the first greater key and the comment that belongs to that; the rest stays where it is."""
    accept(read_budget(written, mode="custom-fps", dtype="float16"), 3)
    accept(read_budget(written, mode="a"), 4)
    first, note = "[[budget]]  # the laptop", "# bigger than"
    assert written.read_text() == (
        WRITTEN.replace(
            first,
            '[[budget]]\nmode = "custom-fps"\ndtype = "float16"\npeak_bytes = 3\n\n'
            '[[budget]]\nmode = "a"\npeak_bytes = 4\n\n' + first,
        )
    )
    assert note in written.read_text()
    accept(read_budget(written, mode="zoo"), 5)
    assert written.read_text().endswith("peak_bytes = 5\n'''\n\n[[budget]]\nmode = \"zoo\"\npeak_bytes = 5\n")


def test_what_is_recorded_already_is_not_written(written: Path) -> None:
    """The file is not touched, not even replaced by its like."""
    before = written.stat()
    accept(read_budget(written, mode="himap"), 1000)
    assert written.stat().st_ino == before.st_ino
    assert written.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "text", ['[[budget]]\r\nmode = "a"\r\npeak_bytes = 1\r\n', '[[budget]]\nmode = "a"\npeak_bytes = 1']
)
def test_line_ends_stay(tmp_path: Path, text: str) -> None:
    """Those of Windows, and a file that ends without one."""
    path = tmp_path / "b.toml"
    path.write_bytes(text.encode())
    accept(read_budget(path, mode="a"), 22)
    assert path.read_bytes().decode() == text.replace("= 1", "= 22")
    accept(read_budget(path, mode="b"), 3)
    end = "\r\n" if "\r" in text else "\n"
    added = f'[[budget]]{end}mode = "b"{end}peak_bytes = 3{end}'
    assert path.read_bytes().decode() == text.replace("= 1", "= 22").removesuffix(end) + end * 2 + added


def test_the_file_keeps_its_permissions_and_a_link_stays_one(written: Path, tmp_path: Path) -> None:
    """A file that a group may write to is not closed to it, and what a link points at is what changes."""
    written.chmod(0o664)
    link = tmp_path / "link.toml"
    link.symlink_to(written)
    accept(read_budget(link, mode="himap"), 1)
    assert link.is_symlink()
    assert read_budget(written, mode="himap").limit_bytes == 1
    assert stat.S_IMODE(written.stat().st_mode) == 0o664
    new = tmp_path / "new.toml"
    mask = os.umask(0o022)
    try:
        accept(read_budget(new, mode="a"), 1)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(new.stat().st_mode) == 0o644


hostile = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        '"',
        "\\",
        "]]",
        "[[budget]]\npeak_bytes = 1",
        "\x7f",
        "\x00",
        "\r",
        "\u2028",
        "\u202e",
        "'''",
        "😀",
        "#",
        "",
        "=",
        ".",
    ]
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.dictionaries(hostile, hostile, max_size=3), st.integers(0, 2**63 - 1)), max_size=4))
def test_any_text_may_be_a_key(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[dict[str, str], int]]
) -> None:
    """Quotes, line ends, brackets, NUL, marks that turn text, names that are no bare words: read back as they were."""
    path = tmp_path_factory.mktemp("budgets") / "b.toml"
    expected: dict[tuple[tuple[str, str], ...], int] = {}
    for key, n_bytes in entries:
        accept(Budget(path, key, None), n_bytes)
        expected[tuple(sorted(key.items()))] = n_bytes
    for items, n_bytes in expected.items():
        # Not as keyword arguments: a fact may be called path.
        tables = tomllib.loads(path.read_bytes().decode())["budget"]
        assert {**dict(items), "peak_bytes": n_bytes} in tables
        assert len(tables) == len(expected)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ({"peak_bytes": "7"}, "must not have peak_bytes"),
        ({"samples": 20}, "must be text, got samples=20"),
        ({"mode": "\ud800"}, "must be text that UTF-8 can write"),
    ],
)
def test_a_key_that_cannot_be_written_is_refused(tmp_path: Path, key: dict[str, Any], message: str) -> None:
    """When it is read and when it is accepted."""
    with pytest.raises(ValueError, match=message):
        read_budget(tmp_path / "b.toml", **key)
    with pytest.raises(ValueError, match=message):
        accept(Budget(tmp_path / "b.toml", key, None), 1)


@pytest.mark.parametrize("n_bytes", [-1, True, 1.5, "7", 2**63])
def test_a_figure_that_is_none_is_refused(tmp_path: Path, n_bytes: Any) -> None:
    """Bytes are whole numbers of at least 0."""
    with pytest.raises(ValueError, match="a budget must be a whole number of bytes, got"):
        accept(Budget(tmp_path / "b.toml", {"mode": "a"}, None), n_bytes)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"budget = 3\n", r"must be \[\[budget\]\] tables, got '3'"),
        (b"budget = [3]\n", r"must be \[\[budget\]\] tables"),
        (b"[[budget]]\nmode = 'a'\npeak_bytes = true\n", "needs a whole number peak_bytes"),
        (b"[[budget]]\nmode = 'a'\npeak_bytes = -1\n", "needs a whole number peak_bytes"),
        (b"[[budget]]\nmode = 'a'\npeak_bytes = 9223372036854775808\n", "needs a whole number peak_bytes"),
        (b"[[budget]]\nmode = 'a'\npeak_bytes = 1" + b"0" * 400, "needs a whole number peak_bytes"),
        (b"[[budget]]\nsamples = 20\npeak_bytes = 1\n", "key must be text"),
        (b"[[budget]]\nmode = 'a'\npeak_bytes = 1\n" * 2, "must be there once, got {'mode': 'a'} twice"),
        (b"[[budget]]\nmode = '\xff'\n", "must be a TOML file in UTF-8"),
        (b"a = " + b"[" * 100_000, "budgets must be TOML"),
    ],
)
def test_a_file_that_says_no_clear_limits_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    """The error names it, and it stays as it is: no guess at what a reviewed limit might be."""
    path = tmp_path / "b.toml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as refused:
        read_budget(path, mode="a")
    assert str(path) in str(refused.value)
    with pytest.raises(ValueError, match=message):
        accept(Budget(path, {"mode": "a"}, None), 1)
    assert path.read_bytes() == data


def test_a_folder_is_no_file_of_budgets(tmp_path: Path) -> None:
    """Named, and not a crash."""
    with pytest.raises(ValueError, match=r"must be a TOML file in UTF-8, got .*: .*[Dd]irectory"):
        read_budget(tmp_path, mode="a")


@pytest.mark.parametrize(
    "text",
    [
        'budget = [{mode = "a", peak_bytes = 1}]\n',
        "note = '''\n[[budget]]\n'''\n[[budget]]\nmode = 'a'\npeak_bytes = 1\n",
        "[[budget]]\nmode = 'a'\nnote = '''\npeak_bytes = 1\n'''\npeak_bytes = 1\n",
    ],
)
def test_a_spelling_it_cannot_edit_is_left_alone(tmp_path: Path, text: str) -> None:
    """A valid file whose lines deceive is read, and an accept says what to write by hand instead of harming it."""
    path = tmp_path / "b.toml"
    path.write_text(text)
    note = tomllib.loads(text)["budget"][0].get("note")
    key = {"mode": "a"} if note is None else {"mode": "a", "note": note}
    assert read_budget(path, **key).limit_bytes == 1
    with pytest.raises(ValueError, match="is not written as --vram-accept can edit it: set peak_bytes = 2 by hand"):
        accept(Budget(path, key, 1), 2)
    assert path.read_text() == text


def _accept_some(path: Path, writer: int) -> None:
    for number in range(10):
        accept(Budget(path, {"mode": f"{writer}-{number}"}, None), 100 * writer + number)


def test_writers_at_once_keep_every_entry(tmp_path: Path) -> None:
    """Four processes with ten new budgets each: forty in the file, and nothing else in the folder."""
    path = tmp_path / "b.toml"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_accept_some, args=(path, writer)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(60)
        assert process.exitcode == 0
    found = {entry["mode"]: entry["peak_bytes"] for entry in tomllib.loads(path.read_text())["budget"]}
    assert found == {f"{writer}-{number}": 100 * writer + number for writer in range(4) for number in range(10)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_file_as_it_was(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half of a file under its name, and none beside it."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        accept(read_budget(written, mode="himap"), 1)
    assert written.read_text() == WRITTEN
    assert list(written.parent.iterdir()) == [written]


def test_two_tests_that_share_a_budget_get_the_larger(tmp_path: Path) -> None:
    """In one process and over several: both have to fit. What was before is what the run found."""
    path = tmp_path / "b.toml"
    accept(Budget(path, {"mode": "a"}, None), 50)
    _, first = record(read_budget(path, mode="a"), 70)
    held, second = record(read_budget(path, mode="a"), 60, [first])
    assert held.limit_bytes == read_budget(path, mode="a").limit_bytes == 70
    assert merged([second, first]) == [Accepted(str(path), {"mode": "a"}, 50, 70)]

    _, elsewhere = record(read_budget(path, mode="a"), 65)  # a process that knows of neither
    assert read_budget(path, mode="a").limit_bytes == 65
    assert reconciled([first, second, elsewhere]) == [Accepted(str(path), {"mode": "a"}, 50, 70)]
    assert read_budget(path, mode="a").limit_bytes == 70


def test_the_diff_tells_figures_that_differ_apart(tmp_path: Path) -> None:
    """To the byte where they would read alike; what is as before is counted; names are text, no commands."""
    path = str(tmp_path / "b.toml")
    told = [
        Accepted(path, {"mode": "himap", "dtype": "float16"}, 2**30, 2**30 + 1),
        Accepted(path, {"mode": "\x1b[2J"}, None, 2**20),
        Accepted(path, {"mode": "same"}, 5, 5),
    ]
    assert diff(told, tmp_path) == [
        "budgets accepted in b.toml: 2 changed, 1 as before",
        "  budget          before           now              change",
        "  himap, float16  1,073,741,824 B  1,073,741,825 B  +1 B",
        r"  '\x1b[2J'       new              1.00 MiB         -",
    ]


SUITE = """
    import os, pytest, torch
    @pytest.mark.parametrize("mode", ["a", "b", "c", "d"])
    def test_peak(vram, mode):
        size = int(os.environ.get("SIZE", "1000"))
        with torch.inference_mode():
            recording = vram.replay(lambda n: torch.zeros(size), [0], laps=1)
        budget = vram.budget(os.environ.get("BUDGETS", "budgets.toml"), mode=mode)
        vram.assert_peak(recording, budget, besides_bytes=recording.before["requested"])
"""
RUN = ("--vram-device", "cpu", "-p", "no:benchmark")
A, B = "test_suite.py::test_peak[a]", "test_suite.py::test_peak[b]"


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(test_suite=SUITE)
    return pytester


def limits(pytester: pytest.Pytester) -> dict[str, int]:
    entries = tomllib.loads((pytester.path / "budgets.toml").read_text())["budget"]
    return {entry["mode"]: entry["peak_bytes"] for entry in entries}


def test_an_accept_shows_what_it_changed(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the summary: new ones, then the figure before and now, then nothing but a count; keys that no test measured
    stay as they are."""
    (suite.path / "budgets.toml").write_text('[[budget]]\nmode = "z"  # elsewhere\npeak_bytes = 7\n')
    new = suite.runpytest(*RUN, "--vram-accept")
    new.assert_outcomes(passed=4)
    new.stdout.fnmatch_lines(["budgets accepted in budgets.toml: 4 changed", "  a  *new  *3.91 KiB  -"])
    assert limits(suite) == {"z": 7, **dict.fromkeys("abcd", 4000)}
    assert '"z"  # elsewhere' in (suite.path / "budgets.toml").read_text()
    monkeypatch.setenv("SIZE", "1001")
    more = suite.runpytest(*RUN, "--vram-accept", B)
    more.stdout.fnmatch_lines(["budgets accepted in budgets.toml: 1 changed", "  b  *4,000 B  *4,004 B  *+4 B"])
    assert limits(suite) == {"z": 7, "a": 4000, "b": 4004, "c": 4000, "d": 4000}
    same = suite.runpytest(*RUN, "--vram-accept", B)
    same.stdout.fnmatch_lines(["budgets accepted in budgets.toml: 0 changed, 1 as before"])
    suite.runpytest(*RUN, B).stdout.no_fnmatch_line("*budgets accepted*")


@pytest.mark.parametrize("ci", ["true", "woodpecker"])
def test_ci_accepts_nothing_unless_forced(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    """A usage error that names the way out, for the ini file's wish too; forced, it accepts."""
    monkeypatch.setenv("CI", ci)
    (suite.path / "forever.ini").write_text("[pytest]\nvram_accept = true\n")
    for wish in (("--vram-accept",), ("-c", "forever.ini")):
        refused = suite.runpytest(*RUN, *wish)
        assert refused.ret == pytest.ExitCode.USAGE_ERROR
        refused.stderr.fnmatch_lines([f"*--vram-accept: CI={ci} is set*force it with --vram-accept-force*"])
        assert not (suite.path / "budgets.toml").exists()
    suite.runpytest(*RUN, A, "--vram-accept-force").assert_outcomes(passed=1)
    assert limits(suite) == {"a": 4000}


@pytest.mark.parametrize("ci", ["", "False"])
def test_a_ci_variable_that_says_no_is_no_ci(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    """Empty, 0 and false."""
    monkeypatch.setenv("CI", ci)
    suite.runpytest(*RUN, "--vram-accept", A).assert_outcomes(passed=1)


def test_an_accept_alone_has_a_diff_and_no_figures(pytester: pytest.Pytester) -> None:
    """A budget may be accepted without a recording: the summary then says nothing of measuring."""
    pytester.makepyfile(
        "def test_peak(vram): assert vram.accept(vram.budget('budgets.toml', mode='a'), 4000).limit_bytes == 4000"
    )
    result = pytester.runpytest(*RUN, "--vram-accept")
    result.assert_outcomes(passed=1)
    assert limits(pytester) == {"a": 4000}
    result.stdout.fnmatch_lines(["budgets accepted in budgets.toml: 1 changed"])
    result.stdout.no_fnmatch_line("measured: *")


def test_budgets_that_cannot_be_written_are_told_and_tests_judged(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget that is there decides: over it fails, within it passes, new is skipped; nothing is accepted."""
    suite.runpytest(*RUN, "--vram-accept", A).assert_outcomes(passed=1)
    monkeypatch.setattr(Path, "replace", _read_only)
    monkeypatch.setenv("SIZE", "1001")
    result = suite.runpytest(*RUN, "--vram-accept")
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines(["budget not accepted: a in budgets.toml: *Read-only file system*"])
    result.stdout.no_fnmatch_line("*budgets accepted*")
    monkeypatch.setenv("SIZE", "999")
    suite.runpytest(*RUN, "--vram-accept", A).assert_outcomes(passed=1)
    assert limits(suite) == {"a": 4000}


def _read_only(path: Path, target: Path) -> Path:
    raise OSError(30, "Read-only file system", str(target))


def test_every_missing_budget_of_a_recording_is_listed(tmp_path: Path) -> None:
    """A second one does not take the first one's place; the same one, asked for again, is listed once."""
    session = VramSession(SessionOptions(device="cpu", root=tmp_path))
    recording = session.replay(lambda n: torch.zeros(n), [1, 2], laps=3)
    for mode in ("a", "b", "b"):
        with pytest.raises(NotRecorded):
            session.assert_peak(recording, session.budget("budgets.toml", mode=mode))
    assert [check.text.split(" in ")[0] for check in session.summary(recording).checks] == [
        "new: no budget a",
        "new: no budget b",
    ]


def test_an_accept_that_was_tried_again_counts_no_more(pytester: pytest.Pytester) -> None:
    """The last try's figure of each budget is recorded, or that of another test where it is more; the table shows the
    change since before the first."""
    pytest.importorskip("pytest_rerunfailures", reason="pytest-rerunfailures is not installed")
    pytester.makefile(".toml", budgets='[[budget]]\nmode = "known"\npeak_bytes = 400\n')
    pytester.makepyfile(
        """
        TRIES = iter([8000, 12000, 400])

        def test_other(vram): vram.accept(vram.budget("budgets.toml", mode="shared"), 1000)

        def test_flaky(vram):
            n_bytes = next(TRIES)
            for mode in ("shared", "known", "new"):
                vram.accept(vram.budget("budgets.toml", mode=mode), n_bytes)
            vram.accept(vram.budget("budgets.toml", mode="new"), 300)
            assert n_bytes == 400
        """
    )
    result = pytester.runpytest(*RUN, "--vram-accept", "--reruns", "2")
    result.assert_outcomes(passed=2)
    assert limits(pytester) == {"known": 400, "new": 400, "shared": 1000}
    result.stdout.fnmatch_lines(
        ["budgets accepted in budgets.toml: 2 changed, 1 as before", "*", "  shared  new *1,000 B *", "  new *400 B *"]
    )
