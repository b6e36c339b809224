"""A recording beside its reference, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vram
from vram.recording import Recording
from vram.verdict.ratio import compare, fit_by_length

MiB = 2**20


def recorded(name: str, peaks: Any, *, warm_up: int = 0, **facts: Any) -> Recording:
    """Three laps over samples with these peaks; the first lap, warm-up, needs `warm_up` more."""
    laps = np.array([peaks, peaks, peaks], dtype=np.int64)
    laps[0] += warm_up
    fields = {"environment": {"source": "hand-made"}, "tolerance_bytes": {}, "absent": {}} | facts
    return Recording(
        name=name,
        channels={"requested_peak": laps},
        before={"requested_peak": 0},
        exact=frozenset({"requested_peak"}),
        marks={},
        seconds=np.ones(laps.shape),
        warmup_laps=1,
        **fields,
    )


def test_exactly_the_share_passes_and_one_byte_more_fails() -> None:
    """0.29 of 100 bytes are 29: read as the decimal it is written as, not as the float below it."""
    reference = recorded("baseline", [100, 200])
    vram.assert_ratio(recorded("pruned", [29, 58]), reference, at_most=0.29)
    with pytest.raises(vram.RatioExceeded, match=r"sample 1 needs 59 B \(59 B\), 1 B over the allowed 58 B"):
        vram.assert_ratio(recorded("pruned", [29, 59]), reference, at_most=0.29)


def test_every_sample_is_beside_its_own_reference() -> None:
    """A sample that needs more than its reference fails, though the highest of all is lower."""
    with pytest.raises(vram.RatioExceeded, match="too much in 1 of 2 samples\n  sample 0 needs 20 B"):
        vram.assert_ratio(recorded("pruned", [20, 50]), recorded("baseline", [10, 100]), at_most=1)


def test_what_both_hold_and_what_warms_up_is_left_out() -> None:
    """90 of 100 bytes are weights: 95 beside 100 is a half. The first lap is not compared."""
    pruned, reference = recorded("pruned", [95], warm_up=MiB), recorded("baseline", [100])
    vram.assert_ratio(pruned, reference, at_most=0.5, besides_bytes=90)
    with pytest.raises(vram.RatioExceeded):
        vram.assert_ratio(pruned, reference, at_most=0.5)


def test_some_samples_can_be_chosen() -> None:
    """Samples that nothing can be pruned from are left aside by number, and the others keep theirs."""
    pruned, reference = recorded("pruned", [10, 5, 6]), recorded("baseline", [10, 10, 10])
    vram.assert_ratio(pruned, reference, at_most=0.6, samples=[1, 2])
    with pytest.raises(vram.RatioExceeded, match="in 1 of 2 samples\n  sample 2 "):
        vram.assert_ratio(pruned, reference, at_most=0.5, samples=[1, 2])


def test_a_tolerance_of_the_channel_counts_in() -> None:
    """A channel with a granule is not convicted by less than it."""
    noisy: dict[str, Any] = {"tolerance_bytes": {"requested_peak": 5}}
    vram.assert_ratio(recorded("pruned", [105], **noisy), recorded("baseline", [100], **noisy), at_most=1)
    with pytest.raises(vram.RatioExceeded, match="1 B over the allowed 105 B"):
        vram.assert_ratio(recorded("pruned", [106], **noisy), recorded("baseline", [100], **noisy), at_most=1)


def test_nothing_beside_nothing_is_level() -> None:
    """A reference of 0 bytes allows 0, and divides nothing."""
    assert vram.judge_ratio([0], [0], 1).ratios == (1.0,)
    over = vram.judge_ratio([1], [0], 1)
    assert (over.over, over.summary()["ratio"]) == ((0,), None)


LENGTHS = [64, 100, 150, 200, 300, 400, 627]


def test_a_quadratic_culprit_is_named_by_the_length() -> None:
    """Eight maps of N x N in float32 and 1 KiB a token over the reference: their bytes, at the longest input. The worst
    sample comes first."""
    n = np.array(LENGTHS)
    reference = recorded("baseline", 4096 * n)
    with pytest.raises(vram.RatioExceeded) as failure:
        vram.assert_ratio(
            recorded("dense", 5120 * n + 8 * 4 * n**2), reference, "requested_peak", at_most=1, lengths=LENGTHS
        )
    text = str(failure.value)
    assert "needed - reference = " in text
    assert "+1,024.0 N +32.000 N^2 bytes, for inputs of N = 64 to 627" in text
    assert "quadratic: 12.00 MiB of it at N = 627, as 8 maps of N x N in float32 are, or 16 in float16" in text
    assert text.index("sample 6 (N = 627) needs") < text.index("sample 0 (N = 64) needs")
    assert "can't see a fault below the maximum of a pass" in text


@pytest.mark.parametrize("seed", range(5))
def test_a_line_with_noise_is_no_bend(seed: int) -> None:
    """Blocks of 512 bytes around a line: the rates are found, and nothing is called quadratic."""
    random = np.random.default_rng(seed)
    n = random.integers(64, 700, 40)
    fit = fit_by_length(1000 * n + 512 * random.integers(0, 2, 40), n.tolist())
    assert fit is not None
    assert not fit.quadratic
    assert fit.b + 2 * fit.c * 380 == pytest.approx(1000, rel=0.02)  # the slope in the middle


def test_three_lengths_cannot_tell_a_bend() -> None:
    """Any three points lie on a parabola: said, not guessed."""
    assert fit_by_length([1, 4, 9], [1, 2, 3]) is None
    ratio = vram.judge_ratio([9, 9, 9], [1, 1, 1], 1, lengths=[5, 6, 5])
    assert "2 different, 4 are needed" in ratio.explanation()


def test_a_ratio_never_reads_like_the_allowed_one() -> None:
    """81 bytes more than 769,848 are 1.000105 times as much, not 1.000."""
    text = vram.judge_ratio([769_929, 1], [769_848, 2], 1).explanation()
    assert "needs 0.500 x to 1.000105 x the requested_peak" in text
    assert "81 B over the allowed 769,848 B: 1.000105 x 769,848 B" in text


def test_the_explanation_fits_on_a_terminal() -> None:
    """At most 25 lines for any number of samples."""
    lengths = list(range(1, 501))
    ratio = vram.judge_ratio([3 * n for n in lengths], lengths, 2, lengths=lengths)
    lines = ratio.explanation().splitlines()
    assert len(lines) <= 25
    assert "and 492 more samples" in ratio.explanation()


def test_exactly_as_many_samples_as_are_shown_leave_no_rest() -> None:
    """Eight are told; of nine, one is left."""
    assert "more samples" not in vram.judge_ratio([2] * 8, [1] * 8, 1).explanation()
    assert "  and 1 more samples" in vram.judge_ratio([2] * 9, [1] * 9, 1).explanation()


def test_what_goes_into_the_report() -> None:
    """Names, the channel, the share and the ratio as numbers, and the sentence of the terminal."""
    ratio = compare(recorded("pruned", [52, 51]), recorded("baseline", [100, 100]), at_most=0.8, besides_bytes=2)
    assert ratio.summary() == {
        "reference": "baseline",
        "channel": "requested_peak",
        "at_most": 0.8,
        "ratio": 50 / 98,
        "over": 0,
        "text": "pruned needs 0.500 x to 0.510 x the requested_peak of baseline (median 0.505 x, at most 0.8 allowed)",
    }


@pytest.mark.parametrize(("at_most", "told"), [(0.8, "0.800400 x"), (0.8001, "0.800400 x"), (0.9, "0.800 x")])
def test_a_ratio_gets_more_digits_only_beside_its_like(at_most: float, told: str) -> None:
    """0.8004 reads like 0.8 and like 0.8001 in three digits."""
    assert f"needs {told} to" in str(vram.judge_ratio([8004], [10_000], at_most))


def test_without_lengths_it_says_what_to_give() -> None:
    """A bend can only be told from the lengths of the inputs."""
    assert "  by input length: not known; give lengths=" in vram.judge_ratio([2], [1], 1).explanation().splitlines()


def test_four_lengths_are_enough_for_a_bend() -> None:
    """A parabola through four points, by hand: 5 + 3N + 2N^2."""
    fit = fit_by_length([5 + 3 * n + 2 * n * n for n in (1, 2, 3, 4)], [1, 2, 3, 4])
    assert fit is not None
    assert (fit.a, fit.b, fit.c) == pytest.approx((5, 3, 2))
    assert fit.quadratic


@pytest.mark.parametrize(
    ("sagitta_bytes", "tolerance_bytes", "bends"), [(0.9, 0, False), (1.5, 0, True), (3, 5, False), (6, 5, True)]
)
def test_a_bend_below_the_tolerance_is_none(sagitta_bytes: float, tolerance_bytes: int, bends: bool) -> None:
    """A parabola over 0..4 leaves its chord by c (4 - 0)^2 / 4 = 4c in the middle; a byte of that may be rounding."""
    for lengths in ([0, 1, 2, 3, 4], [4, 5, 6, 7, 8]):
        fit = fit_by_length([sagitta_bytes / 4 * n * n for n in lengths], lengths, tolerance_bytes)
        assert fit is not None
        assert fit.quadratic is bends


def test_a_bend_with_noise_is_still_a_bend() -> None:
    """10 N^2, five more or less: the square explains far more than nine tenths of what a line leaves over."""
    lengths = list(range(10))
    fit = fit_by_length([10 * n * n + 5 * (-1) ** n for n in lengths], lengths)
    assert fit is not None
    assert fit.quadratic


def test_the_tolerance_of_a_level_is_its_fit_s_too() -> None:
    """Readings within the channel's granule bend by chance."""
    lengths = [0, 1, 2, 3, 4]
    needed = [100 + n * n for n in lengths]
    assert vram.judge_ratio(needed, [100] * 5, 1, lengths=lengths).fit.quadratic  # type: ignore[union-attr]
    ratio = vram.judge_ratio(needed, [100] * 5, 1, lengths=lengths, tolerance_bytes=5)
    assert not ratio.fit.quadratic  # type: ignore[union-attr]


def test_a_fact_that_only_one_side_knows_is_a_difference() -> None:
    """Nobody can say that it was alike."""
    one, both = {"source": "s"}, {"source": "s", "driver": "560"}
    with pytest.raises(vram.Inconclusive, match="driver is None and 560"):
        compare(recorded("a", [1], environment=one), recorded("b", [1], environment=both), at_most=1)
    with pytest.raises(vram.Inconclusive, match="driver is 560 and None"):
        compare(recorded("a", [1], environment=both), recorded("b", [1], environment=one), at_most=1)


def test_a_channel_that_nobody_reads_is_inconclusive() -> None:
    """With that as the reason."""
    with pytest.raises(vram.Inconclusive, match="a: host was not measured: no meter reads it"):
        compare(recorded("a", [1]), recorded("b", [1]), "host", at_most=1)


def test_what_was_not_measured_alike_is_inconclusive() -> None:
    """An absent channel, or another device: no comparison, and the reason."""
    here, there = recorded("a", [1]), recorded("b", [1], environment={"source": "elsewhere"})
    with pytest.raises(vram.Inconclusive, match="a and b were not measured alike: source is hand-made and elsewhere"):
        vram.assert_ratio(here, there, at_most=1)
    without = recorded("c", [1], absent={"driver": "no driver"})
    with pytest.raises(vram.Inconclusive, match="c: driver was not measured: no driver"):
        vram.assert_ratio(without, here, "driver", at_most=1)


@pytest.mark.parametrize("at_most", [0, -1, True, float("nan"), float("inf"), "much"])
def test_a_share_that_is_none_is_refused(at_most: Any) -> None:
    """The rule, then what came."""
    with pytest.raises(ValueError, match="at_most must be a number above 0"):
        vram.judge_ratio([1], [1], at_most)


def test_what_does_not_pair_up_is_refused() -> None:
    """Other samples, other lengths, a sample that is not there."""
    with pytest.raises(ValueError, match="same samples, got 1 and 2"):
        compare(recorded("a", [1]), recorded("b", [1, 2]), at_most=1)
    with pytest.raises(ValueError, match="lengths must hold one length a sample of the lap, 1, got 2"):
        compare(recorded("a", [1]), recorded("b", [1]), at_most=1, lengths=[1, 2])
    with pytest.raises(ValueError, match=r"samples must be in 0\.\.0, got \[1\]"):
        compare(recorded("a", [1]), recorded("b", [1]), at_most=1, samples=[1])
    with pytest.raises(ValueError, match="1 or more, got 0 and 0"):
        vram.judge_ratio([], [], 1)
    with pytest.raises(ValueError, match="lengths must hold one length a sample, got 2 for 1 samples"):
        vram.judge_ratio([1], [1], 1, lengths=[1, 2])


def test_one_that_nobody_named_is_called_what_it_is() -> None:
    """A recording and its reference."""
    assert str(vram.judge_ratio([1], [1], 1)).startswith("recording needs 1.000 x to 1.000 x the requested_peak of ref")
