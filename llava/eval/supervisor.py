"""A rank under torchrun: a supervisor that outlives whatever happens to the worker that answers.

torchrun ends all processes of a node 30 seconds after one of them failed. So a rank that fails must not end before the
others are done: its worker is a process of its own. The supervisor never touches a device; it passes the worker's
report on to torchrun's store, and waits. Rank 0's supervisor gathers all reports, and writes the results.

There is no process group: a collective would need every rank alive.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from llava.errors import BadInput
from llava.eval.rank_store import RankStore
from llava.eval.ranks import Gathered, Rank, RankReport, ReportWriter, gather, read_report
from llava.eval.results import print_figures, write_result
from llava.eval.worker import ENDING_SECONDS, POLL_SECONDS, Worker, fork_worker
from vram.exit_codes import BAD_INPUT, FINE, OUT_OF_MEMORY

# torchrun's SIGTERM is followed by SIGKILL after 30 seconds. Where another rank's death is the cause, go on for:
_GRACE_SECONDS = 20.0
_KILL_SECONDS = 3.0  # from asking the worker to stop until it is killed
_GATHER_SECONDS = 6.0  # from asking until rank 0 waits no longer for the others


def supervise(prog: str, rank: Rank, work: Callable[[ReportWriter], int]) -> int:
    """Run `work` in a worker and see to its results; the exit code of this rank, once all are gathered.

    In the worker this raises SystemExit.
    """
    process, pipe = fork_worker(rank, work)
    with _Stop() as stop:
        store = RankStore(rank)
        return _Supervisor(prog, rank, Worker(prog, rank, process, pipe, store), store, stop).run()


class _Stop:
    """Notes SIGINT and SIGTERM instead of dying of them."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at = 0.0

    def __enter__(self) -> _Stop:
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is None:
            self.signal, self._at = number, time.monotonic()

    def since(self, seconds: float) -> bool:
        """Whether a signal came at least so many seconds ago."""
        return self.signal is not None and time.monotonic() - self._at >= seconds


class _Supervisor:
    def __init__(self, prog: str, rank: Rank, worker: Worker, store: RankStore, stop: _Stop) -> None:
        self._prog, self._rank, self._worker, self._store, self._stop = prog, rank, worker, store, stop
        self._other_died = False

    def run(self) -> int:
        """Watch the worker to its end, then gather or wait; the exit code of this rank."""
        while self._worker.listen():
            self._store.beat()
            self._handle_stop()
        self._worker.finish()
        return self._gather() if self._rank.index == 0 else self._wait_for_results()

    @property
    def _grace(self) -> float:
        """Seconds to go on after a signal: another rank's death is a reason to finish first."""
        return _GRACE_SECONDS if self._other_died else 0.0

    def _handle_stop(self) -> None:
        """After a signal: ask the worker to stop, then make it."""
        if self._stop.signal == signal.SIGTERM and not self._other_died:
            self._other_died = any(
                self._store.has_died(index) or not self._store.has_joined(index) for index in self._rank.neighbours
            )
        if self._stop.since(self._grace):
            self._worker.interrupt()
        if self._stop.since(self._grace + _KILL_SECONDS):
            self._worker.kill("interrupted")

    @property
    def _is_out_of_time(self) -> bool:
        """Whether the run was stopped, and there is no time to wait for other ranks any more."""
        return self._stop.since(self._grace + _GATHER_SECONDS)

    def _wait_for_results(self) -> int:
        """Wait until rank 0 has written the results; the worker's exit code."""
        last_beat, beats = time.monotonic(), ""
        while self._store.is_reachable and not self._store.written() and not self._store.has_died(0):
            self._store.beat()
            if (now := self._store.beats(0)) != beats:
                last_beat, beats = time.monotonic(), now
            if time.monotonic() - last_beat > self._worker.timeout or self._is_out_of_time:
                break
            time.sleep(POLL_SECONDS)
        result = self._store.written()
        self._store.leave()
        self._worker.close(keep=result != "complete")
        code = self._worker.report.code
        assert code is not None
        if result:
            return code
        kept = f" of {self._rank} are kept in {self._worker.kept_in}" if self._worker.kept_in else ""
        print(f"{self._prog}: error: rank 0 wrote no results; answers{kept}", file=sys.stderr)
        return code or OUT_OF_MEMORY

    def _gather(self) -> int:
        """Gather all reports and write the results; the exit code of the run."""
        gathered = gather([self._worker.report, *self._other_reports()])
        code = self._write(gathered)
        for problem in gathered.problems():
            print(f"{self._prog}: error: {problem}", file=sys.stderr, flush=True)
        self._worker.close(keep=code != FINE)
        self._store.set_written("complete" if code == FINE else "incomplete")
        self._wait_for_readers()
        return code

    def _write(self, gathered: Gathered) -> int:
        if not gathered.worth_writing:
            return gathered.code
        assert gathered.header is not None
        output = Path(gathered.header["output"])
        try:
            output = write_result(output, gathered.as_json())
        except BadInput as error:
            print(f"{self._prog}: error: {error}", file=sys.stderr)
            return BAD_INPUT
        print_figures(gathered.answers, gathered.memory, output)
        return gathered.code

    def _wait_for_readers(self) -> None:
        """Wait until the other ranks have read the result: torchrun's store, and they, end with this process."""
        until = time.monotonic() + ENDING_SECONDS
        alive = [index for index in range(1, self._rank.count) if self._store.has_ended(index)]
        while self._store.is_reachable and time.monotonic() < until and not self._is_out_of_time:
            alive = [index for index in alive if not self._store.has_left(index) and not self._store.has_died(index)]
            if not alive:
                break
            time.sleep(POLL_SECONDS / 4)

    def _other_reports(self) -> Iterator[RankReport]:
        """Reports of ranks 1, 2, ... once each has ended, died or gone silent, or the run is stopped."""
        beats = {index: (time.monotonic(), "") for index in range(1, self._rank.count)}
        lost: dict[int, str] = {}
        while self._store.is_reachable:
            waiting = [index for index in beats if index not in lost and not self._store.has_ended(index)]
            if not waiting:
                break
            self._store.beat()
            for index in waiting:
                if (now := self._store.beats(index)) != beats[index][1]:
                    beats[index] = (time.monotonic(), now)
                if reason := self._why_lost(index, *beats[index]):
                    lost[index] = reason
            time.sleep(POLL_SECONDS)
        for index in beats:
            report = read_report(self._store.report(index))
            if report.code is None:
                report.reason = lost.get(index, "lost: torchrun's store can't be reached")
            yield report

    def _why_lost(self, index: int, last_beat: float, beats: str) -> str:
        """Why rank `index` is given up; "" while it is not."""
        if self._store.has_died(index):
            return "its supervisor was killed"
        if time.monotonic() - last_beat > (timeout := self._worker.timeout):
            return f"lost: nothing heard of it for {timeout:g} s{'' if beats else ', not even once'}"
        return "still at work when the run was stopped" if self._is_out_of_time else ""
