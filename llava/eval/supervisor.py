"""A rank under torchrun: a supervisor that outlives whatever happens to the process that answers.

torchrun ends all processes of a node 30 seconds after one of them failed. So a rank that fails must not end before the
others are done: it is forked in two, before torch is imported. The child answers, and tells of it through a pipe. The
supervisor never touches a device; it writes what it hears to a file beside the results and to torchrun's key-value
store, sees how the child ended, and waits. Rank 0's gathers what all of them have told, and writes the results.

There is no process group: a collective would need every rank alive. What travels is JSON text; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from llava.errors import BadInput
from llava.eval.ranks import Rank, Report, Told, gather, line, rank_file, read_report
from llava.eval.results import print_figures, write_json
from vram.exit_codes import BAD_INPUT, FINE, INTERRUPTED, OUT_OF_MEMORY

T = TypeVar("T")

_POLL_SECONDS = 0.2
_ENDING_SECONDS = 30.0  # for a child that has said its last word, or a peer that should hear rank 0's
# torchrun's SIGTERM is followed by SIGKILL after 30 seconds. Where a peer's death is the cause, go on for:
_GRACE_SECONDS = 20.0
_KILL_SECONDS = 3.0  # from asking the child to stop until it is killed
_GATHER_SECONDS = 6.0  # from asking until rank 0 waits no longer for the others
_PATIENCE_SECONDS = 600.0  # until the header says what the command line does


def supervise(prog: str, rank: Rank, work: Callable[[Report], int]) -> int:
    """Run `work` in a forked child and see to its results; the exit code of this rank, once all are gathered.

    In the child this raises SystemExit.
    """
    told, telling = os.pipe()
    alive, living = os.pipe()  # its other end closes with the supervisor, even one that is killed
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(told)
        os.close(living)
        os.setpgrp()  # torchrun signals the group: what to do about it is for the supervisor to say
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
        with os.fdopen(telling, "w", encoding="utf-8") as stream:
            code = work(Report(rank, stream))
        raise SystemExit(code)
    os.close(telling)
    os.close(alive)
    with _Stop() as stop:
        return _Supervisor(prog, rank, child, told, stop).run()


def _end_with(alive: int) -> None:
    os.read(alive, 1)
    os._exit(INTERRUPTED)


class _Stop:
    """Notes SIGINT and SIGTERM instead of dying of them."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at = 0.0

    def __enter__(self) -> _Stop:
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.signal is None:
            self.signal, self.at = number, time.monotonic()


class Board:
    """What the supervisors tell one another, in torchrun's store. Once that fails, everything read is absent."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._store: Any = None
        try:
            self._store = self._joined()
        except RuntimeError as error:
            print(f"{rank}: torchrun's store can't be reached: {error}", file=sys.stderr)
        self.run = self._try(lambda store: store.compare_set("run", "", uuid.uuid4().hex).decode(), uuid.uuid4().hex)
        self._try(lambda store: store.set(f"process/{rank.index}", f"{rank.node} {os.getpid()}"), None)

    def _joined(self) -> Any:
        from datetime import timedelta

        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # as documented

        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself, as a rule
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=not hosted and self._rank.index == 0,
            wait_for_workers=False,
            multi_tenant=True,
            timeout=timedelta(seconds=60),
        )
        return PrefixStore(f"llava/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    @property
    def reached(self) -> bool:
        """False once the store has failed."""
        return self._store is not None

    def tell(self, text: str) -> None:
        """Add to what this rank has told."""
        self._try(lambda store: store.append(f"told/{self._rank.index}", text), None)

    def told(self, index: int) -> str:
        """All that rank `index` has told."""
        return self._get(f"told/{index}")

    def beat(self) -> None:
        """A sign of life."""
        self._try(lambda store: store.add(f"beats/{self._rank.index}", 1), None)

    def beats(self, index: int) -> str:
        """A text that changes while rank `index` lives."""
        return self._get(f"beats/{index}")

    def end(self) -> None:
        """This rank has told everything."""
        self._try(lambda store: store.set(f"ended/{self._rank.index}", "1"), None)

    def ended(self, index: int) -> bool:
        """Whether rank `index` has."""
        return self._get(f"ended/{index}") == "1"

    def joined(self, index: int) -> bool:
        """Whether rank `index` has come to the board."""
        return self._get(f"process/{index}") != ""

    def died(self, index: int) -> bool:
        """Whether rank `index` ran on this node, and its supervisor is gone without having told everything."""
        node, _, process = self._get(f"process/{index}").partition(" ")
        if not process or int(node) != self._rank.node or self.ended(index):
            return False
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        return False

    def write(self, result: str) -> None:
        """Rank 0 has written the results: "complete" or "incomplete"."""
        self._try(lambda store: store.set("written", result), None)

    def written(self) -> str:
        """What rank 0 said of that, or nothing yet."""
        return self._get("written")

    def leave(self) -> None:
        """This rank needs the board no longer."""
        self._try(lambda store: store.set(f"left/{self._rank.index}", "1"), None)

    def left(self, index: int) -> bool:
        """Whether rank `index` does not."""
        return self._get(f"left/{index}") == "1"

    def _get(self, key: str) -> str:
        return self._try(lambda store: str(store.get(key).decode()) if store.check([key]) else "", "")

    def _try(self, call: Callable[[Any], T], otherwise: T) -> T:
        if self._store is None:
            return otherwise
        try:
            return call(self._store)
        except RuntimeError:  # torch's DistError: the node of the store is gone
            self._store = None
            return otherwise


class _Supervisor:
    def __init__(self, prog: str, rank: Rank, child: int, told: int, stop: _Stop) -> None:
        self._prog, self._rank, self._child, self._told, self._stop = prog, rank, child, told, stop
        self._text = ""  # whole lines that the child has told
        self._rest = b""
        self._header: dict[str, Any] | None = None
        self._file: TextIO | None = None
        self._heard = time.monotonic()
        self._interrupted = False
        self._peer_died = False
        self._killed = ""  # why this supervisor killed the child

    def run(self) -> int:
        self._board = Board(self._rank)
        self._add(line(run=self._board.run))
        while self._listen():
            self._board.beat()
            self._see_to_stopping()
            if time.monotonic() - self._heard > self._patience:
                self._kill(f"stopped: nothing heard of it for {self._patience:g} s")
        status = self._reap()
        own = read_report(self._text)
        if own.code is None:
            reason = self._killed or _how_it_ended(status)
            self._add(line(code=INTERRUPTED if self._interrupted else OUT_OF_MEMORY, message=reason))
        self._board.end()
        code = self._finish()
        if self._file is not None:
            self._file.close()
        return code

    @property
    def _patience(self) -> float:
        return _PATIENCE_SECONDS if self._header is None else float(self._header["patience"])

    def _listen(self) -> bool:
        """Hear what the child says, for a moment; False once it can say nothing more."""
        if not select.select([self._told], [], [], _POLL_SECONDS)[0]:
            return True
        read = os.read(self._told, 1 << 16)
        if not read:
            return False
        self._heard = time.monotonic()
        whole, newline, self._rest = (self._rest + read).rpartition(b"\n")
        if newline:
            self._add((whole + newline).decode())
        return True

    def _add(self, text: str) -> None:
        self._text += text
        self._board.tell(text)
        if self._header is None:
            self._header = read_report(self._text).header
            text = self._text
        if self._header is None:
            return
        try:
            if self._file is None:
                self._file = self._rank.file(Path(self._header["output"])).open("w", encoding="utf-8")
            self._file.write(text)
            self._file.flush()
        except OSError as error:  # the store has it
            print(f"{self._prog}: {self._rank}: its answers can't be kept on the disk: {error}", file=sys.stderr)
            self._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123

    def _see_to_stopping(self) -> None:
        """After a signal: ask the child to stop, then make it. A peer's death is a reason to finish first."""
        if self._stop.signal is None:
            return
        asked = time.monotonic() - self._stop.at
        if self._stop.signal == signal.SIGTERM and not self._peer_died:
            self._peer_died = any(
                self._board.died(index) or not self._board.joined(index) for index in self._rank.neighbours
            )
        grace = _GRACE_SECONDS if self._peer_died else 0.0
        if asked >= grace and not self._interrupted:
            self._interrupted = True
            os.kill(self._child, signal.SIGINT)
        if asked >= grace + _KILL_SECONDS:
            self._kill("interrupted")

    def _kill(self, why: str) -> None:
        if not self._killed:
            self._killed = why
            os.kill(self._child, signal.SIGKILL)

    def _reap(self) -> int:
        """The child's wait status. One that has said its last word and does not end is killed."""
        until = time.monotonic() + _ENDING_SECONDS
        while True:
            process, status = os.waitpid(self._child, os.WNOHANG)
            if process:
                return status
            if time.monotonic() > until:
                self._kill("stopped: it did not end")
            self._board.beat()
            time.sleep(_POLL_SECONDS / 4)

    def _finish(self) -> int:
        """Rank 0: wait for the others, write the results. Others: wait for that. The exit code of this rank."""
        if self._rank.index == 0:
            return self._gather()
        own = read_report(self._text)
        assert own.code is not None
        heard, beats = time.monotonic(), ""
        while self._board.reached and not self._board.written() and not self._board.died(0):
            self._board.beat()
            if (now := self._board.beats(0)) != beats:
                heard, beats = time.monotonic(), now
            if time.monotonic() - heard > self._patience or self._gathering_is_over:
                break
            time.sleep(_POLL_SECONDS)
        result = self._board.written()
        self._board.leave()
        if result == "complete":
            self._remove_file()
        if not result:
            kept = f" of {self._rank} are kept in {self._file.name}" if self._file is not None else ""
            print(f"{self._prog}: error: rank 0 wrote no results; answers{kept}", file=sys.stderr)
            return own.code or OUT_OF_MEMORY
        return own.code

    @property
    def _gathering_is_over(self) -> bool:
        if self._stop.signal is None:
            return False
        grace = _GRACE_SECONDS if self._peer_died else 0.0
        return time.monotonic() - self._stop.at > grace + _GATHER_SECONDS

    def _gather(self) -> int:
        gathered = gather([read_report(self._text), *self._others()])
        code = gathered.code
        if gathered.worth_writing:
            assert gathered.header is not None
            output = Path(gathered.header["output"])
            try:
                write_json(output, gathered.as_json())
            except BadInput as error:
                print(f"{self._prog}: error: {error}", file=sys.stderr)
                code = BAD_INPUT
            else:
                print_figures(gathered.answers, gathered.memory, output)
        for problem in gathered.problems():
            print(f"{self._prog}: error: {problem}", file=sys.stderr, flush=True)
        if code == FINE:
            self._remove_file()
        self._board.write("complete" if code == FINE else "incomplete")
        until = time.monotonic() + _ENDING_SECONDS  # torchrun's store, and these processes, end with this one
        alive = [index for index in range(1, self._rank.count) if self._board.ended(index)]
        while self._board.reached and time.monotonic() < until and not self._gathering_is_over:
            alive = [index for index in alive if not self._board.left(index) and not self._board.died(index)]
            if not alive:
                break
            time.sleep(_POLL_SECONDS / 4)
        return code

    def _others(self) -> Iterator[Told]:
        """What ranks 1, 2, ... have told when they end, die, fall silent, or the run is stopped."""
        now = time.monotonic()
        heard = dict.fromkeys(range(1, self._rank.count), (now, ""))
        lost: dict[int, str] = {}
        while self._board.reached:
            waiting = [index for index in heard if index not in lost and not self._board.ended(index)]
            if not waiting:
                break
            self._board.beat()
            for index in waiting:
                if (beats := self._board.beats(index)) != heard[index][1]:
                    heard[index] = (time.monotonic(), beats)
                if self._board.died(index):
                    lost[index] = "its supervisor was killed"
                elif time.monotonic() - heard[index][0] > self._patience:
                    never = "" if heard[index][1] else ", not even once"
                    lost[index] = f"lost: nothing heard of it for {self._patience:g} s{never}"
                elif self._gathering_is_over:
                    lost[index] = "still at work when the run was stopped"
            time.sleep(_POLL_SECONDS)
        for index in heard:
            told = self._told_by(index)
            if told.code is None:
                told.reason = lost.get(index, "lost: torchrun's store can't be reached")
            yield told

    def _told_by(self, index: int) -> Told:
        """Of the store, or of a shared disk where that knows more."""
        told = read_report(self._board.told(index))
        if self._header is not None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                path = rank_file(Path(self._header["output"]), index, self._rank.count)
                on_disk = read_report(path.read_text(encoding="utf-8"))
                if on_disk.run == self._board.run and len(on_disk.answers) > len(told.answers):
                    return on_disk
        return told

    def _remove_file(self) -> None:
        if self._file is not None and self._header is not None:
            self._rank.file(Path(self._header["output"])).unlink(missing_ok=True)


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.Signals(number).name})"
    return f"ended with code {os.WEXITSTATUS(status)}, without a word"
