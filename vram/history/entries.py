"""One entry of a saved run: the figures of a recording or a marked test, as they travel in `extra_info["vram"]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

from vram.history.keys import Key, canonical, key_of, name_of
from vram.summary import ChannelSummary, MarkedSummary, RecordingSummary
from vram.summary.breakdown import MOST_COMPACT_BYTES, Breakdown, json_bytes
from vram.summary.breakdown import from_json as breakdown_from_json
from vram.summary.parts import PEAK

SCHEMA = 1
OUT_OF_MEMORY, INCONCLUSIVE = "out of memory", "inconclusive"
# Channels of a marked test: above what was alive when its body began.
BODY_PEAK, BODY_KEPT = "body_peak", "body_kept"
_SAME = "="


@dataclass(frozen=True)
class Channel:
    """One channel's figures. `growth` is bytes a sample, 0 where the verdict is stable or plateau.

    Figures are absolute: `before_bytes` were there before the first sample, weights and the tensors of other tests.
    `laps` are the readings, packed: one text a lap, see `unpacked`.
    """

    exact: bool
    most_bytes: int
    last_bytes: int
    growth: float = 0.0
    verdict: str | None = None
    tolerance_bytes: int = 0
    before_bytes: int | None = None
    laps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """The figures of one key in one run. `test` measured it; `accepted`: recorded as the key's base.

    `breakdown` is what the peak is made of, as `Breakdown.compact` packs it; None where it was not traced.
    """

    key: Key
    test: str
    verdict: str | None
    reason: str
    channels: Mapping[str, Channel]
    accepted: bool = False
    seconds: float | None = None
    outcome: str = ""
    breakdown: Mapping[str, Any] | None = None

    @cached_property
    def in_pieces(self) -> Breakdown | None:
        """Pieces of the peak; None where it was not traced, or can't be read."""
        try:
            found = None if self.breakdown is None else breakdown_from_json(self.breakdown)
        except ValueError:
            return None
        peak = self.channels.get(PEAK) or self.channels.get(BODY_PEAK)
        return found if found is not None and peak is not None and peak.most_bytes == found.peak_bytes else None

    @cached_property
    def outline(self) -> tuple[tuple[int, int], ...]:
        """The total over the sample of the peak: place in thousandths, bytes. Empty where there was no room for it."""
        try:
            points = [point.partition(":") for point in str((self.breakdown or {}).get("outline") or "").split()]
            found = tuple((int(place), int(n_bytes)) for place, _, n_bytes in points)
        except ValueError:
            return ()
        sound = all(0 <= place <= 1000 and 0 <= n_bytes < 2**63 for place, n_bytes in found)
        return found if sound and list(found) == sorted(found, key=itemgetter(0)) else ()

    @property
    def outcome_text(self) -> str:
        """The outcome; for runs saved by earlier versions, which have none, the verdict."""
        return self.outcome or self.verdict or "inconclusive"

    @property
    def peaks_alone(self) -> bool:
        """True for a recording of one lap, which has peaks to compare and no verdict on growth."""
        laps = [len(channel.laps) for channel in self.channels.values()]
        return self.verdict is None and bool(laps) and set(laps) == {1}

    @property
    def name(self) -> str:
        """Name of the recording or of the test."""
        return name_of(self.key)

    @property
    def growth(self) -> float | None:
        """Bytes a sample, the most of any exact channel; None where no exact channel was judged for it."""
        rates = [channel.growth for channel in self.channels.values() if channel.exact and channel.verdict is not None]
        return max(rates, default=None)


def of_summary(
    summary: RecordingSummary, environment: Mapping[str, object], test: str, *, occurrence: int = 1
) -> Entry:
    """The entry of a recording, made by `test`.

    A recording with a name of its own is known by that, whichever test makes it; one without by its test and step. The
    second of one name or step in a test is known by a number too. `environment` is for one that has none of its own.
    """
    name = summary.name if occurrence == 1 else f"{summary.name} {occurrence}"
    key = key_of(
        summary.environment or environment,
        mode=name,
        test=None if summary.named else test,
        samples=summary.samples,
        facts=summary.facts,
    )
    return Entry(
        key=key,
        test=test,
        verdict=INCONCLUSIVE if summary.nothing_allocated and summary.verdict is None else summary.verdict,
        reason=summary.reason,
        channels={name: _channel(channel) for name, channel in summary.channels.items()},
        seconds=_seconds(summary),
        outcome=summary.outcome,
        breakdown=_breakdown(summary),
    )


def _breakdown(summary: RecordingSummary) -> dict[str, Any] | None:
    """The peak in pieces, and where those leave room the outline of its sample."""
    if summary.breakdown is None:
        return None
    data = summary.breakdown.compact()
    room = MOST_COMPACT_BYTES - json_bytes({**data, "outline": ""})
    outline = "" if summary.timeline is None else summary.timeline.outline(room)
    return {**data, "outline": outline} if outline else data


def _channel(channel: ChannelSummary) -> Channel:
    growing = channel.verdict in ("grows", "undecided") and channel.bytes_per_sample is not None
    return Channel(
        exact=channel.exact,
        most_bytes=channel.most_bytes,
        last_bytes=channel.last_bytes,
        growth=float(channel.bytes_per_sample or 0.0) if growing else 0.0,
        verdict=channel.verdict,
        tolerance_bytes=channel.tolerance_bytes,
        before_bytes=channel.before_bytes,
        laps=packed(channel.bytes),
    )


def _seconds(summary: RecordingSummary) -> float | None:
    """Seconds of one sample, on average."""
    if not summary.seconds or not summary.laps or not summary.samples:
        return None
    return float(summary.seconds) / (summary.laps * summary.samples)


def of_marked(summary: MarkedSummary, environment: Mapping[str, object]) -> Entry:
    """The entry of a marked test; bytes that it leaves behind only where a marker limits them."""
    figures = {BODY_PEAK: summary.peak_bytes, BODY_KEPT: summary.kept_bytes}
    return Entry(
        key=key_of(environment, test=summary.test),
        test=summary.test,
        verdict=summary.verdict,
        reason=summary.inconclusive,
        channels={
            name: Channel(exact=True, most_bytes=n_bytes, last_bytes=n_bytes)
            for name, n_bytes in figures.items()
            if n_bytes is not None
        },
        outcome=summary.outcome,
        breakdown=None if summary.breakdown is None else summary.breakdown.compact(),
    )


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """One entry a key: the last of one test that was tried again, the largest of several tests' (workers')."""
    by_key: dict[Key, Entry] = {}
    for entry in entries:
        known = by_key.get(entry.key)
        if known is None or known.test == entry.test or _size(entry) > _size(known):
            by_key[entry.key] = entry
    return list(by_key.values())


def _size(entry: Entry) -> float:
    if entry.verdict == OUT_OF_MEMORY:
        return float("inf")
    return max((channel.most_bytes for channel in entry.channels.values() if channel.exact), default=-1)


def accept(entry: Entry) -> Entry:
    """The same, recorded as its key's base."""
    return replace(entry, accepted=True)


def to_json(entry: Entry) -> dict[str, Any]:
    """Ready for JSON; `from_json` reads it back."""
    data = {**asdict(entry), "key": dict(entry.key)}
    return data if entry.breakdown is not None else {name: data[name] for name in data if name != "breakdown"}


def from_json(data: Mapping[str, Any]) -> Entry:
    """Read back what `to_json` gave. ValueError for anything else."""
    try:
        key = data["key"]
        if not isinstance(key, dict) or not name_of(canonical(key)):
            raise ValueError(f"key must name a mode or a test, got {key!r}")
        return Entry(
            key=canonical(key),
            test=str(data["test"]),
            verdict=_text_or_none("verdict", data["verdict"]),
            reason=str(data["reason"]),
            channels={str(name): _read(channel) for name, channel in data["channels"].items()},
            accepted=bool(data.get("accepted", False)),
            seconds=None if data.get("seconds") is None else _number("seconds", data["seconds"]),
            outcome=str(data.get("outcome") or ""),
            breakdown=_object_or_none("breakdown", data.get("breakdown")),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an entry: {type(error).__name__}: {error}") from None


def _read(data: Mapping[str, Any]) -> Channel:
    whole = {name: data[name] for name in ("most_bytes", "last_bytes")}
    whole["tolerance_bytes"] = data.get("tolerance_bytes", 0)
    if data.get("before_bytes") is not None:
        whole["before_bytes"] = data["before_bytes"]
    for name, figure in whole.items():
        if not isinstance(figure, int) or isinstance(figure, bool) or abs(figure) >= 2**63:
            raise ValueError(f"{name} must be a whole number of bytes, got {str(figure)[:40]}")
    laps = data.get("laps") or []
    if not isinstance(laps, list | tuple) or not all(isinstance(lap, str) for lap in laps):
        raise ValueError(f"laps must be a list of texts, got {str(laps)[:40]}")
    return Channel(
        exact=bool(data["exact"]),
        growth=_number("growth", data.get("growth") or 0.0),
        verdict=_text_or_none("verdict", data.get("verdict")),
        laps=tuple(laps),
        **whole,
    )


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**63:
        raise ValueError(f"{name} must be a number, got {str(value)[:40]}")
    return float(value)


def _text_or_none(name: str, value: object) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(f"{name} must be text or null, got {str(value)[:40]}")
    return value


def _object_or_none(name: str, value: object) -> Mapping[str, Any] | None:
    if not isinstance(value, dict | None):
        raise ValueError(f"{name} must be an object or null, got {str(value)[:40]}")
    return value


def packed(laps: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """One text a lap of readings: "4096x20 8192" is twenty times 4096, then 8192; "=" is the lap before once more."""
    texts: list[str] = []
    before: Sequence[int] | None = None
    for lap in laps:
        groups = [(figure, len(list(same))) for figure, same in groupby(lap)]
        text = " ".join(f"{figure}x{times}" if times > 1 else str(figure) for figure, times in groups)
        texts.append(_SAME if lap == before else text)
        before = lap
    return tuple(texts)


def unpacked(laps: Sequence[str]) -> list[list[int]]:
    """The readings behind `packed`, (laps, samples). ValueError for what it did not give."""
    readings: list[list[int]] = []
    for text in laps:
        if text == _SAME and readings:
            readings.append(list(readings[-1]))
            continue
        lap: list[int] = []
        for word in text.split():
            figure, _, times = word.partition("x")
            lap += [int(figure)] * int(times or 1)
        readings.append(lap)
    return readings
