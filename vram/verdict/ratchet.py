"""S, C and the rises of an array of readings: suspicion by the maximum, conviction by the minimum.

Letters as in `vram.verdict.growth`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vram.recording import Int64

_EVEN = 1.5  # the largest step over the smallest, up to which growth is even
_ORDER = 8  # the same, where it is only to be told from ups and downs
_FALLS = 3  # growth that is no more than so many of the channel's own falls proves nothing by itself


class Ratchet:
    """S, C and the rises of one array of rows (laps or groups of laps), warm-up removed."""

    def __init__(self, rows: Int64, tolerance_bytes: int, cache_budget_bytes: int) -> None:
        self.rows, self.tolerance_bytes = rows, tolerance_bytes
        kept = np.minimum.accumulate(rows[::-1], axis=0)[::-1]
        self.given_back = (rows - kept).max(axis=1)  # the most that any position of a row comes down later
        self.common = (kept - kept[0]).min(axis=1)
        self.suspicious = bool((rows[-1] - kept[0] > tolerance_bytes + cache_budget_bytes).any())
        self.rises: list[int] = []
        level = cache_budget_bytes
        for row, growth in enumerate(self.common):
            if growth > level + tolerance_bytes:
                self.rises.append(row)
                level = growth

    @property
    def quiet(self) -> int:
        """Rows since the last rise."""
        return len(self.rows) - 1 - self.rises[-1]

    @property
    def longest_wait(self) -> int:
        """The most rows it took from one rise to the next, the first counted from the start."""
        return int(np.diff([0, *self.rises]).max())

    def slows_down(self, since: int, times: int = 2) -> bool:
        """Whether the later half of the rows from `since` on rose `times` less than the earlier half did, or slower."""
        middle = (since + len(self.rows) - 1) // 2
        early = self.common[middle] - self.common[since]
        late = self.common[-1] - self.common[-1 - (middle - since)]
        return bool(times * late < early)

    @property
    def steps(self) -> Int64:
        """Growth of each row that all samples have in common."""
        return np.asarray(np.diff(self.common), dtype=np.int64)

    @property
    def late(self) -> npt.NDArray[np.bool_]:
        """Rows of the later half that rose."""
        return self.steps[-(len(self.steps) // 2) :] > self.tolerance_bytes

    @property
    def even(self) -> bool:
        """Whether every row since the first rise rose, and by about the same; one may be left out of equal ones."""
        steps = self.steps[self.rises[0] :]
        rose = steps[steps > 0]
        if len(rose) == len(steps):
            return bool(rose.max() <= _EVEN * rose.min())
        return len(rose) == len(steps) - 1 and bool(rose.max() == rose.min())

    @property
    def moves(self) -> bool:
        """Whether what all samples have in common is little beside the channel's own ups and downs."""
        fall = self.largest_fall
        return fall > self.tolerance_bytes and bool(self.common[-1] <= _FALLS * fall)

    @property
    def goes_on(self) -> bool:
        """Whether nearly every row of the later half rose, by bytes of one order."""
        rose = self.steps[-len(self.late) :][self.late]
        return len(rose) >= len(self.late) - 1 and bool(rose.max() <= _ORDER * rose.min())

    @property
    def floor_sinks(self) -> bool:
        """Whether the least that a row rose by is, in the later half, less than half of what it was before."""
        late = len(self.late)
        return bool(2 * self.steps[-late:].min() < self.steps[:-late].min())

    def filled(self) -> bool:
        """Whether it rose early on, and has since only moved up and down, by as much as it rises now."""
        fall, late = self.largest_fall, self.late
        gained = self.common[-1] - self.common[-1 - len(late)]
        return (
            fall > self.tolerance_bytes
            and not late.all()
            and self.slows_down(0, times=3)
            and bool(gained <= _FALLS * fall)
        )

    def wanders(self, since: int) -> bool:
        """Whether what was gained from row `since` on is no more than the channel's own ups and downs may come to.

        The minima of the last rows rest on few, so they rise towards the end of any fluctuation longer than a row, as
        of a cache with entries of many sizes. Bytes that rows typically give back tell of one; what is let go of once
        does not. Where rows often lie below the row before, it takes more.
        """
        gained = self.common[-1] - self.common[since]
        given_back = np.sort(self.given_back[since:])
        typical = given_back[len(given_back) // 2]
        steps = np.diff(self.rows[since:].sum(axis=1))
        often_down = 4 * (steps < 0).sum() > len(steps)
        return bool(gained <= 2 * typical or (typical and often_down and gained <= 3 * given_back[-1]))

    @property
    def largest_fall(self) -> int:
        """The most that any position ever came down from an earlier row: the channel's own fluctuation."""
        return int((np.maximum.accumulate(self.rows, axis=0) - self.rows).max())

    def settled(self) -> bool:
        """Whether nothing rose within the later half of the rows."""
        later = self.rows[len(self.rows) // 2 :]
        return not (later[-1] - later.min(axis=0) > self.tolerance_bytes).any()

    def resolution_bytes(self, steady_since: int | None) -> int:
        """The smallest constant leak a sample that lifts every row above the noise of the row before.

        Where growth was found, the noise is what is left around its trend from row `steady_since` on.
        """
        rows = self.rows
        if steady_since is not None:
            rows = rows[steady_since:]
            trend = np.arange(len(rows)) * np.diff(rows, axis=0).mean()
            rows = np.rint(rows - trend[:, None]).astype(np.int64)
        noise = int((rows.max(axis=0) - rows.min(axis=0)).max())
        return int(2 * noise + self.tolerance_bytes) // int(rows.shape[1]) + 1
