"""Where the wall-clock goes: seconds per stage of a trial's process, and of a run and its trial slots."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

Clock = Callable[[], float]

# When the command began, for the tuner, which runs in a process of NNI's: seconds since 1970.
BEGAN = "NNI_BAYES_NAS_BEGAN"
# The same of the process that NNI started, for the fork that runs its trial.
TRIAL_BEGAN = "NNI_BAYES_NAS_TRIAL_BEGAN"


class Stopwatch:
    """Seconds per stage of one process; a stage may stand inside another, and each second counts for the inner one.

    Args:
        clock: Gives seconds; never goes back.

    Attributes:
        seconds: Stage -> seconds, in the order in which stages were first met.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._clock = clock
        self._open: list[str] = []
        self._since = clock()

    def begin(self, stage: str) -> None:
        """Enter a stage; until it ends, the one around it stands still."""
        self._book()
        self._open.append(stage)
        self.seconds.setdefault(stage, 0.0)

    def end(self) -> None:
        """Leave the innermost stage."""
        self._book()
        self._open.pop()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What runs inside the block belongs to this stage."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def add(self, seconds: dict[str, float]) -> None:
        """Add seconds that were measured elsewhere, by stage."""
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def account(self, total: float) -> dict[str, float]:
        """The stages, and as "other" what is missing from `total` seconds; to the millisecond."""
        rest = total - sum(self.seconds.values())
        return {stage: round(value, 3) for stage, value in {**self.seconds, "other": max(0.0, rest)}.items()}

    def _book(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


class RunClock:
    """Seconds of a run by phase, and how many of those of its trial slots a trial filled.

    A phase lasts until the next one begins. The time between a kill and a resume belongs to no phase, nor does what
    came after the last time that the state was written.

    Args:
        slots: How many trials may run at a time.
        began: Seconds since the command began; they belong to the phase "start".
        state: An earlier `state`, as JSON gave it back.
        clock: Gives seconds; never goes back.
    """

    def __init__(
        self, slots: int, began: float, state: dict[str, Any] | None = None, clock: Clock = time.monotonic
    ) -> None:
        state = state or {}
        self.slots = slots
        self.phases: dict[str, float] = dict(state.get("phases", {}))
        self.filled: float = state.get("filled", 0.0)
        self._clock = clock
        self._phase, self._running = "start", 0
        self._since = clock() - began

    def now(self) -> float:
        """The clock, for differences."""
        return self._clock()

    def update(self, *, phase: str | None = None, running: int | None = None) -> None:
        """Note that another phase begins, or that another number of trials runs; None leaves it as it is."""
        now = self._clock()
        self.phases[self._phase] = self.phases.get(self._phase, 0.0) + now - self._since
        if self._phase == "trials":
            self.filled += min(self._running, self.slots) * (now - self._since)
        self._since = now
        self._phase = phase or self._phase
        self._running = self._running if running is None else running

    @property
    def state(self) -> dict[str, Any]:
        """What `state` of the constructor takes."""
        return {"phases": self.phases, "filled": self.filled}


def process_age() -> float:
    """Seconds since this process was started, to about 0.01; on other systems than Linux to about 1."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        # psutil counts from the boot in whole seconds. Field 22 of proc(5), the 20th after the name in brackets.
        started = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK"))
    return max(0.0, time.time() - float(psutil.Process().create_time()))


def since(variable: str) -> float:
    """Seconds since the beginning that a variable of the environment names; without it, the age of this process."""
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, time.time() - float(os.environ[variable]))
    return process_age()
