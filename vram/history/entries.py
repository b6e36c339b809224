"""One entry of a run: what a recording or a marked test needed, as it travels in `extra_info["vram"]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from vram.history.keys import Key, canonical, key_of, name_of

SCHEMA = 1
OUT_OF_MEMORY = "out of memory"
# Channels of a marked test: above what was alive when its body began.
BODY_PEAK, BODY_KEPT = "body_peak", "body_kept"
_SAME = "="


@dataclass(frozen=True)
class Channel:
    """One channel's figures. `growth` is bytes a sample, 0 where the verdict is stable or plateau.

    Figures are absolute: `before_bytes` were there before the first sample, weights and what other tests held. `laps`
    are the readings, packed: one text a lap, see `unpacked`.
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
    """What one key needed in one run. `test` is the test that measured it; `accepted`: recorded as the key's base."""

    key: Key
    test: str
    verdict: str | None
    reason: str
    channels: Mapping[str, Channel]
    accepted: bool = False
    seconds: float | None = None

    @property
    def name(self) -> str:
        """What was measured."""
        return name_of(self.key)

    @property
    def growth(self) -> float | None:
        """Bytes a sample, the most of any exact channel; None where no exact channel was judged for it."""
        rates = [channel.growth for channel in self.channels.values() if channel.exact and channel.verdict is not None]
        return max(rates, default=None)


def of_summary(
    summary: Mapping[str, Any], environment: Mapping[str, object], test: str, *, occurrence: int = 1
) -> Entry:
    """The entry of a recording's summary (see `vram.session.summarize`), made by `test`.

    A recording with a name of its own is known by that, whichever test makes it; one without by its test and step, and
    the second of the same step in a test by a number too. `environment` is of one that does not say its own.
    """
    named = summary.get("named", True)
    mode = summary["mode"] if named or occurrence == 1 else f"{summary['mode']} {occurrence}"
    key = key_of(
        summary.get("environment", environment),
        mode=mode,
        test=None if named else test,
        samples=summary.get("samples"),
        facts=summary.get("facts"),
    )
    return Entry(
        key=key,
        test=test,
        verdict=summary["verdict"],
        reason=summary["reason"],
        channels={name: _channel(told) for name, told in summary["channels"].items()},
        seconds=_seconds(summary),
    )


def _channel(told: Mapping[str, Any]) -> Channel:
    laps = told["bytes"]
    return Channel(
        exact=told["exact"],
        most_bytes=max(map(max, laps)),
        last_bytes=laps[-1][-1],
        growth=float(told["bytes_per_sample"]) if told["verdict"] in ("grows", "undecided") else 0.0,
        verdict=told["verdict"],
        tolerance_bytes=told.get("tolerance_bytes", 0),
        before_bytes=told.get("before_bytes"),
        laps=packed(laps),
    )


def _seconds(summary: Mapping[str, Any]) -> float | None:
    """Of one sample, on average."""
    if not summary.get("seconds") or not summary.get("laps"):
        return None
    return float(summary["seconds"]) / int(summary["laps"] * summary["samples"])


def of_marked(figures: Mapping[str, Any], environment: Mapping[str, object]) -> Entry:
    """The entry of a marked test's figures: `test`, `peak_bytes`, `kept_bytes` (None where it was not asked for)."""
    told = {BODY_PEAK: figures["peak_bytes"], BODY_KEPT: figures["kept_bytes"]}
    return Entry(
        key=key_of(environment, test=figures["test"]),
        test=figures["test"],
        verdict=figures["verdict"],
        reason="",
        channels={
            name: Channel(exact=True, most_bytes=n_bytes, last_bytes=n_bytes)
            for name, n_bytes in told.items()
            if n_bytes is not None
        },
    )


def merged(entries: Sequence[Entry]) -> list[Entry]:
    """One entry a key. Of several by one test (tried again) the last; of several tests' (workers') the largest."""
    found: dict[Key, Entry] = {}
    for entry in entries:
        known = found.get(entry.key)
        if known is None or known.test == entry.test or _size(entry) > _size(known):
            found[entry.key] = entry
    return list(found.values())


def _size(entry: Entry) -> float:
    if entry.verdict == OUT_OF_MEMORY:
        return float("inf")
    return max((channel.most_bytes for channel in entry.channels.values() if channel.exact), default=-1)


def accept(entry: Entry) -> Entry:
    """The same, recorded as its key's base."""
    return replace(entry, accepted=True)


def to_json(entry: Entry) -> dict[str, Any]:
    """Ready for JSON; `from_json` reads it back."""
    return {**asdict(entry), "key": dict(entry.key)}


def from_json(told: Mapping[str, Any]) -> Entry:
    """Read back what `to_json` gave. ValueError for anything else."""
    try:
        key = told["key"]
        if not isinstance(key, dict) or not name_of(canonical(key)):
            raise ValueError(f"key must name a mode or a test, got {key!r}")
        return Entry(
            key=canonical(key),
            test=str(told["test"]),
            verdict=told["verdict"],
            reason=str(told["reason"]),
            channels={str(name): _read(channel) for name, channel in told["channels"].items()},
            accepted=bool(told.get("accepted", False)),
            seconds=told.get("seconds"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an entry: {type(error).__name__}: {error}") from None


def _read(told: Mapping[str, Any]) -> Channel:
    whole = {name: told[name] for name in ("most_bytes", "last_bytes")}
    whole["tolerance_bytes"] = told.get("tolerance_bytes", 0)
    if told.get("before_bytes") is not None:
        whole["before_bytes"] = told["before_bytes"]
    for name, figure in whole.items():
        if not isinstance(figure, int) or isinstance(figure, bool):
            raise ValueError(f"{name} must be a whole number, got {figure!r}")
    return Channel(
        exact=bool(told["exact"]),
        growth=float(told.get("growth", 0.0)),
        verdict=told.get("verdict"),
        laps=tuple(told.get("laps", ())),
        **whole,
    )


def packed(laps: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Readings as one text a lap: "4096x20 8192" is twenty times 4096, then 8192; "=" is the lap before once more."""
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
    found: list[list[int]] = []
    for text in laps:
        if text == _SAME and found:
            found.append(list(found[-1]))
            continue
        lap: list[int] = []
        for word in text.split():
            figure, _, times = word.partition("x")
            lap += [int(figure)] * int(times or 1)
        found.append(lap)
    return found
