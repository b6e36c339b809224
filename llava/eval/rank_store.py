"""The key-value store that torchrun's ranks share. Holds text alone: nothing is unpickled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from llava.eval.ranks import Rank

T = TypeVar("T")


class RankStore:
    """Reports and signs of life of all ranks, in torchrun's store. Once that fails, everything read is absent."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._store: Any = None
        try:
            self._store = self._connect()
        except RuntimeError as error:
            print(f"{rank}: torchrun's store can't be reached: {error}", file=sys.stderr)
        self._set(f"process/{rank.index}", f"{rank.node} {os.getpid()}")

    def _connect(self) -> Any:
        # Imports torch, and a worker is forked off before that.
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
    def is_reachable(self) -> bool:
        """False once the store has failed."""
        return self._store is not None

    def append(self, text: str) -> None:
        """Add `text` to this rank's report."""
        self._try(lambda store: store.append(f"report/{self._rank.index}", text), None)

    def report(self, index: int) -> str:
        """The report of rank `index` so far."""
        return self._get(f"report/{index}")

    def beat(self) -> None:
        """Give a sign of life."""
        self._try(lambda store: store.add(f"beats/{self._rank.index}", 1), None)

    def beats(self, index: int) -> str:
        """A text that changes while rank `index` lives."""
        return self._get(f"beats/{index}")

    def end(self) -> None:
        """Mark this rank's report as finished."""
        self._set(f"ended/{self._rank.index}", "1")

    def has_ended(self, index: int) -> bool:
        """Whether the report of rank `index` is finished."""
        return self._get(f"ended/{index}") == "1"

    def has_joined(self, index: int) -> bool:
        """Whether rank `index` has reached the store."""
        return self._get(f"process/{index}") != ""

    def has_died(self, index: int) -> bool:
        """Whether rank `index` ran on this node, and its supervisor is gone before its report was finished."""
        node, _, process = self._get(f"process/{index}").partition(" ")
        if not process or int(node) != self._rank.node or self.has_ended(index):
            return False
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return True
        return False

    def set_written(self, result: str) -> None:
        """Note that rank 0 has written the results, "complete" or "incomplete"."""
        self._set("written", result)

    def written(self) -> str:
        """The same, or "" before that."""
        return self._get("written")

    def leave(self) -> None:
        """Note that this rank needs the store no longer."""
        self._set(f"left/{self._rank.index}", "1")

    def has_left(self, index: int) -> bool:
        """Whether rank `index` needs the store no longer."""
        return self._get(f"left/{index}") == "1"

    def _get(self, key: str) -> str:
        return self._try(lambda store: str(store.get(key).decode()) if store.check([key]) else "", "")

    def _set(self, key: str, value: str) -> None:
        self._try(lambda store: store.set(key, value), None)

    def _try(self, call: Callable[[Any], T], otherwise: T) -> T:
        if self._store is None:
            return otherwise
        try:
            return call(self._store)
        except RuntimeError:  # torch's DistError: the node of the store is gone
            self._store = None
            return otherwise
