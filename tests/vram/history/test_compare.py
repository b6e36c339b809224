"""Comparing entries, by figures worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tests.vram.history.made import CPU, entry, series
from vram.history.compare import Change, Comparison, anchor, judge, matching
from vram.history.criteria import Criterion, parse
from vram.history.entries import Entry, merged, of_marked, packed, unpacked
from vram.history.keys import difference, key_of, name_of
from vram.summary import MarkedSummary

MIB = 2**20


def changes(head: Entry, base: Entry, *criteria: str) -> dict[str, Change]:
    judged = judge(head, series(base)[0], [parse(text) for text in criteria])
    return {change.figure: change for change in judged.changes}


@pytest.mark.parametrize(
    ("text", "criterion"),
    [
        ("peak:2%", Criterion("peak", share=Fraction(2, 100))),
        ("requested_peak:2.5 %", Criterion("peak", share=Fraction(25, 1000))),
        ("growth:0", Criterion("growth")),
        ("peak:1MiB", Criterion("peak", tolerance_bytes=MIB)),
        ("cuda:1 requested_peak:1%", Criterion("cuda:1 requested_peak", share=Fraction(1, 100))),
        ("himap/peak:512", Criterion("peak", "himap", tolerance_bytes=512)),
        ("tests/a.py::test_b[x-1]/growth: 0", Criterion("growth", "tests/a.py::test_b[x-1]")),
    ],
)
def test_a_criterion_is_a_figure_and_a_tolerance(text: str, criterion: Criterion) -> None:
    """Percent, a size or bytes; before the last slash, what it is for."""
    assert parse(text) == criterion


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("peak", "a criterion must be"),
        ("peak:", "a criterion must be"),
        ("", "a criterion must be"),
        ("/peak:1%", "a criterion must be"),
        ("speed:1%", "a figure must be one of peak, growth"),
        ("peak:-1%", "a tolerance must be"),
        ("peak:1MB", "a tolerance must be"),
        ("peak:two", "a tolerance must be"),
        ("host:5%", "host is noisy"),
        ("driver:0", "driver is noisy"),
    ],
)
def test_a_criterion_that_cannot_be_read_is_refused(text: str, rule: str) -> None:
    """The rule and what came; a noisy figure can't be made to decide."""
    with pytest.raises(ValueError, match=rule):
        parse(text)


@pytest.mark.parametrize(
    ("base", "head", "criterion", "status"),
    [
        (1000, 1000, "peak:0", "same"),
        (1000, 1001, "peak:0", "regressed"),
        (1000, 999, "peak:0", "improved"),
        (1000, 1020, "peak:2%", "within"),
        (1000, 1021, "peak:2%", "regressed"),
        (1000, 1000 + MIB, "peak:1MiB", "within"),
        (1000, 1001 + MIB, "peak:1MiB", "regressed"),
        (0, 0, "peak:5%", "same"),
        (0, 1, "peak:5%", "regressed"),
        (3 * 10**17, 3 * 10**17 + 1, "peak:0", "regressed"),
    ],
)
def test_exactly_what_is_allowed_passes_and_one_byte_more_fails(
    base: int, head: int, criterion: str, status: str
) -> None:
    """Also from a base of zero, and beyond what a float tells apart."""
    assert changes(entry(head), entry(base), criterion)["peak"].status == status


def test_both_figures_are_shown() -> None:
    """The line says what it was, what it is, by how much it is over: to the byte."""
    text = str(changes(entry(2049), entry(2048))["peak"])
    assert text == ("peak 2.00 KiB (2,049 B), 1 B (0.05%) more than 2.00 KiB (2,048 B) in run 0001; allowed 0 more")


def test_without_a_criterion_every_exact_figure_counts_to_the_byte() -> None:
    """Peak, level and growth; with one, what it names alone; an entry that none concerns, to the byte again."""
    grown = changes(entry(1000, growth=4096.0), entry(1000))
    assert {figure: change.status for figure, change in grown.items()} == {
        "requested": "same",
        "peak": "same",
        "growth": "regressed",
    }
    assert changes(entry(1000, growth=4096.0), entry(1000), "peak:0")["growth"].status == "reported"
    assert changes(entry(1001), entry(1000), "baseline/peak:5%")["peak"].status == "regressed"


def test_a_criterion_says_nothing_of_what_has_no_such_figure() -> None:
    """A marked test has no growth: it neither passes nor is inconclusive, and alone it leaves nothing comparable."""
    marked = of_marked(MarkedSummary("t", peak_bytes=5), CPU)
    judged = judge(marked, series(marked)[0], [parse("growth:0")])
    assert judged.status == "reported"
    assert not Comparison([judged]).comparable
    assert judge(marked, series(marked)[0], [parse("peak:0")]).status == "same"


def test_a_named_criterion_comes_before_a_general_one() -> None:
    """Whichever is given first; a pattern names too."""
    for order in (("peak:0", "himap/peak:5%"), ("himap/peak:5%", "peak:0"), ("peak:0", "hi*/peak:5%")):
        assert changes(entry(1050), entry(1000), *order)["peak"].status == "within"
    assert changes(entry(1050), entry(1000), "peak:5%", "himap/peak:1%")["peak"].status == "regressed"


def test_noisy_channels_are_reported_and_never_fail() -> None:
    """However much more they are."""
    head, base = entry(noisy={"reserved": 9 * MIB, "driver": 5}), entry(noisy={"reserved": MIB, "driver": 1})
    judged = judge(head, series(base)[0])
    assert judged.status == "same"
    assert {change.figure for change in judged.changes if change.status == "reported"} == {"reserved", "driver"}


def test_allocated_decides_where_it_is_exact_alone() -> None:
    """A criterion on a channel that was noisy in either run reports, and never fails."""
    assert changes(entry(noisy={"allocated": 9}), entry(noisy={"allocated": 1}), "allocated:0")["allocated"].status == (
        "reported"
    )


def test_a_new_key_is_new_and_nothing_passed() -> None:
    """No base: not "same", and alone it leaves nothing comparable."""
    judged = judge(entry(), None)
    assert judged.status == "new"
    assert not Comparison([judged]).comparable


@pytest.mark.parametrize("fact", ["device", "driver", "torch", "allocator", "source", "compute_capability"])
def test_other_machines_and_versions_have_other_keys(fact: str) -> None:
    """Each of what moves bytes makes a key of its own, and is named where two keys are held side by side."""
    first, second = (key_of({**CPU, fact: value}, mode="himap") for value in ("one", "two"))
    assert first != second
    assert difference(first, second) == f"{fact} one -> two"


def test_the_projects_own_facts_are_part_of_the_key() -> None:
    """Model and dtype, which nobody else knows; the card's index and the Python version are not."""
    small, large = (key_of(CPU, mode="himap", facts={"model": model, "dtype": "float16"}) for model in ("7b", "13b"))
    assert difference(small, large) == "model 7b -> 13b"
    assert name_of(small) == "himap"
    on = [key_of({"source": f"CUDA allocator of cuda:{card}", "python": f"3.1{card}"}, mode="m") for card in (1, 2)]
    assert on[0] == on[1]


def drift(*peaks: int | None, criterion: str = "peak:5%", accepted: int | None = None) -> Change:
    entries = [entry(peak, accepted=number == accepted) for number, peak in enumerate(peaks)]
    past = series(*entries[:-1])
    return next(
        change for change in judge(entries[-1], past[-1], [parse(criterion)], past).changes if change.figure == "peak"
    )


def test_small_steps_that_each_pass_add_up_to_a_regression() -> None:
    """1 -> 1.04 -> 1.08 at 5 %: against the recorded base, which the second, passing, run did not become."""
    assert drift(100, 104).status == "within"
    found = drift(100, 104, 108)
    assert (found.status, found.base, found.base_run) == ("drifted", 100, "run 0001")
    assert "8 B (8.00%) more than 100 B in run 0001; allowed 5 % more; no single run since was over" in str(found)


@pytest.mark.parametrize(
    ("peaks", "status"),
    [
        ((100, 120, 100), "improved"),  # up, then back
        ((100, 104, 100, 104), "within"),
        ((100, 110, 110), "same"),  # reported when it came
        ((100, 110, 114), "within"),
        ((100, 110, 113, 116), "drifted"),  # from where it stood when it was reported
        ((100, None, 104, None, None, 108), "drifted"),  # gaps
        ((0, 0, 0), "same"),
    ],
)
def test_drift_is_compared_with_what_was_last_reported(peaks: tuple[int, ...], status: str) -> None:
    """A change is reported once, when it happens; only what passed silently is added up."""
    known = [peak for peak in peaks if peak is not None]
    if len(known) != len(peaks):
        past = series(*(entry(peak) for peak in peaks[:-1]))
        held = anchor(past, "peak", parse("peak:5%"))
        assert held is not None
        assert held.run == "run 0001"
    assert drift(*known).status == status


def test_an_accepted_run_is_the_base_from_then_on() -> None:
    """1 -> 1.04 accepted -> 1.08 is within 5 %."""
    assert drift(100, 104, 108, accepted=1).status == "within"


def test_a_run_that_ran_out_of_memory_is_worse_than_one_that_did_not() -> None:
    """Though it has no figures, and did not count its samples; and nothing is said where the base did as well."""
    out = entry(None, verdict="out of memory", samples=None)
    (base,) = matching(out, series(entry(environment={**CPU, "driver": "570.1"})))
    assert not matching(out, series(entry(environment={**CPU, "torch": "2.14.0"}), entry(mode="fps")))
    judged = judge(out, base)
    assert judged.status == "regressed"
    assert str(judged.regressions[0]) == "out of memory, where run 0001 was not"
    assert judge(out, series(out)[0]).status == "inconclusive"
    assert judge(entry(), series(out)[0]).status == "inconclusive"


def test_a_figure_that_was_not_measured_did_not_pass() -> None:
    """A criterion asks for it and this run has none: inconclusive, not the same."""
    head = entry(None)
    judged = judge(head, series(entry())[0], [parse("peak:5%")])
    assert judged.status == "inconclusive"
    assert str(judged.changes[0]) == "peak: not measured in this run"
    unjudged = entry(verdict=None)
    assert judge(unjudged, series(entry())[0]).status == "inconclusive"


def test_one_measurement_a_try_counts() -> None:
    """Tried again, the last; of several workers' copies, the largest."""
    again = merged([entry(3000), entry(1000)])
    assert [one.channels["requested_peak"].most_bytes for one in again] == [1000]
    others = Entry(**{**vars(entry(2000)), "test": "tests/other.py::test_peak"})
    assert merged([entry(1000), others]) == [others]
    assert merged([others, entry(1000)]) == [others]


@pytest.mark.parametrize(
    ("laps", "texts"),
    [
        ([[5, 5, 7], [5, 5, 7], [5, 5, 8]], ("5x2 7", "=", "5x2 8")),
        ([[1], [1], [2], [2]], ("1", "=", "2", "=")),
        ([[-4, 0]], ("-4 0",)),
        ([], ()),
    ],
)
def test_readings_are_packed_and_come_back(laps: list[list[int]], texts: tuple[str, ...]) -> None:
    """Every reading, in less room."""
    assert packed(laps) == texts
    assert unpacked(texts) == laps
