"""The state of every cell of a plan, and what may start next. Pure: no files, no processes, no clock.

A cell waits for its inputs; when the last one is there it becomes ready. Ready cells start longest first, on the
device with the fewest cells. Timed cells run alone on their device, so a device stays with one sort while there is
work: it is drained only when it changes over.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

from bench.run.devices import Device

DONE = frozenset({"ok", "cached"})
FAILED = frozenset({"failed", "diverged", "oom", "timeout", "killed"})


class Board:
    """Who waits for whom, and who may start. Inputs that are not in the plan are taken to be there.

    devices: where cells run; may be set until the first one is taken. Default: one with room for all.
    """

    def __init__(self, cells: Iterable[Any]) -> None:
        self.cells = {cell.key: cell for cell in cells}
        self.state: dict[str, str] = dict.fromkeys(self.cells, "planned")
        self.reason: dict[str, str] = dict.fromkeys(self.cells, "")
        self.counts: Counter[str] = Counter({"planned": len(self.cells)})
        self.running: set[str] = set()
        self.devices = [Device("auto")]
        self._order = {key: index for index, key in enumerate(self.cells)}
        self._dependents: dict[str, list[str]] = {key: [] for key in self.cells}
        self._blockers: dict[str, set[str]] = {}
        for key, cell in self.cells.items():
            self._blockers[key] = {other for other in cell.inputs.values() if other in self.cells}
            for other in self._blockers[key]:
                self._dependents[other].append(key)
        self._ready: dict[bool, list[tuple[float, int, str]]] = {False: [], True: []}
        self._at: dict[str, Device] = {}

    def open(self) -> None:
        """Queue every planned cell whose inputs are there; called once, when the cached cells have been marked."""
        for key in self.cells:
            self._queue(key)

    def done(self, key: str, state: str = "ok") -> None:
        """Mark a cell finished; those that waited for it alone become ready."""
        self._set(key, state)
        for other in self._dependents[key]:
            self._blockers[other].discard(key)
            self._queue(other)

    def fail(self, key: str, state: str, reason: str) -> list[str]:
        """Mark a cell failed and all that build on it skipped; return the keys of the skipped ones."""
        self._set(key, state, reason)
        skipped = []
        because = f"because {self.cells[key].label} {'failed' if state in FAILED else 'was skipped'}"
        waiting = deque(self._dependents[key])
        while waiting:
            other = waiting.popleft()
            if self.state[other] == "planned":
                self._set(other, "skipped", because)
                skipped.append(other)
                waiting.extend(self._dependents[other])
        return skipped

    def again(self, key: str) -> None:
        """Put a cell back: it will be computed once its inputs are there, and before those that build on it."""
        self._set(key, "planned")
        for other in self._dependents[key]:
            self._blockers[other].add(key)
        self._queue(key)

    def leave(self, key: str) -> None:
        """Note that a running cell takes no place here: somebody else computes it."""
        self.running.discard(key)
        if device := self._at.pop(key, None):
            device.cells.remove(key)

    def take(self) -> str | None:
        """Return the next cell to start, now running; None where nothing may start at the moment."""
        for device in sorted(self.devices, key=lambda device: len(device.cells)):
            if device.cells:
                if device.timed_turn:
                    continue
            elif not self._peek(device.timed_turn):
                device.timed_turn = not device.timed_turn
            if len(device.cells) < device.room and self._peek(device.timed_turn):
                key = heapq.heappop(self._ready[device.timed_turn])[2]
                self._set(key, "running")
                self.running.add(key)
                device.cells.add(key)
                self._at[key] = device
                return key
        return None

    def device(self, key: str) -> str:
        """Return the name of the device of a running cell."""
        return self._at[key].name

    def _peek(self, timed: bool) -> bool:
        """Return whether such a cell is ready; entries that are out of date are dropped on the way."""
        heap = self._ready[timed]
        while heap and (self.state[heap[0][2]] != "planned" or self._blockers[heap[0][2]]):
            heapq.heappop(heap)
        return bool(heap)

    def _queue(self, key: str) -> None:
        if self.state[key] == "planned" and not self._blockers[key]:
            cell = self.cells[key]
            heapq.heappush(self._ready[bool(cell.timed)], (-float(cell.weight), self._order[key], key))

    def _set(self, key: str, state: str, reason: str = "") -> None:
        self.leave(key)
        self.counts[self.state[key]] -= 1
        self.counts[state] += 1
        self.state[key], self.reason[key] = state, reason
