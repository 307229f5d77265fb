"""Functions that run one at a time, each in a thread of its own, and meet to do together what all of them do.

Several trainings of one kind take the same steps. Each is written as if it were alone; where it would spend time that
could be spent on all at once, it calls `Member.together` and gets its own part of what comes out.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from nni_bayes_nas.precision import DEVICES, Autocast

T = TypeVar("T")
Together = Callable[[list[Any]], Sequence[Any]]


class Broken(BaseException):
    """Raised in the members of a meeting that is broken off, to end them; no error of theirs."""


class Member:
    """What a function of a `Lockstep` knows of it; everything happens in its own thread, but what is done together."""

    def __init__(self, meeting: Lockstep[Any], index: int) -> None:
        self.index = index
        self._meeting = meeting
        self._turn = threading.Event()
        self._random = _random_state()
        self._broken = False
        self.request: tuple[Together, Hashable, Any, _Modes] | None = None
        self.answer: Any = None
        self.done = False

    def together(self, how: Together, what: Any, key: Hashable = None) -> Any:
        """What `how` gives for `what`, computed with what the other members bring to the same function.

        Blocks until every member has come somewhere. Those who brought the same key, and whose gradients and precision
        are set alike, make one call: `how([what of each])` in order of the members -> one result each.

        Raises:
            Exception: Whatever `how` raises, in every member that took part.
        """
        self.request = how, key, what, _Modes.now()
        self._pause()
        answer, self.answer = self.answer, None
        if isinstance(answer, _Failure):
            raise answer.error
        return answer

    def _pause(self) -> None:
        self._random = _random_state()
        self._turn.clear()
        self._meeting.back.set()
        self._turn.wait()
        if self._broken:
            raise Broken
        _set_random_state(self._random)

    def proceed(self, *, broken: bool = False) -> None:
        """Let the member run until it pauses or ends; called by the meeting."""
        self._broken = broken
        self._meeting.back.clear()
        self._turn.set()
        # In pieces: a signal is handled between two of them.
        while not self._meeting.back.wait(0.5):
            pass

    @contextlib.contextmanager
    def random_numbers(self) -> Iterator[None]:
        """The random numbers of the member, for what is done in its name."""
        _set_random_state(self._random)
        yield
        self._random = _random_state()


class Lockstep(Generic[T]):
    """A meeting of functions.

    Only one thread runs at any time, in the same order each time, so that results can be repeated. Each member has its
    own state of the global random number generators, which begins where that of the caller is. What is done together
    uses as many threads of torch as the caller has; a member's own work one: teams of threads of every member would
    wait for one another.
    """

    def __init__(self) -> None:
        self.back = threading.Event()

    def run(self, functions: Sequence[Callable[[Member], T]]) -> list[T | Exception]:
        """Run all functions to their ends; a function that raises ends alone, and its exception is its result.

        Raises:
            BaseException: What stops this thread or a member (KeyboardInterrupt, ...), after all have ended.
        """
        results: list[Any] = [None] * len(functions)
        members = [Member(self, i) for i in range(len(functions))]
        before, threads = _random_state(), torch.get_num_threads()
        for member, function in zip(members, functions, strict=True):
            threading.Thread(target=_live, args=(member, function, results), daemon=True).start()
        try:
            while present := [m for m in members if not m.done]:
                for member in present:
                    member.proceed()
                    if _stops(results[member.index]):
                        raise results[member.index]
                # For each thread by itself; the members have changed what a thread begins with.
                torch.set_num_threads(threads)
                _meet([m for m in members if not m.done])
        except BaseException:
            for member in members:
                # It may still run, where a signal came in the middle of its turn: it ends at its next meeting.
                while not member.done:
                    member.proceed(broken=True)
            raise
        finally:
            _set_random_state(before)
            torch.set_num_threads(threads)
        return results


def one_by_one(requests: list[tuple[Member, Callable[[], Any]]]) -> list[Any]:
    """For `Member.together`: what each member would do by itself, but with all threads of torch.

    An error is that of its own member alone.
    """
    answers: list[Any] = []
    for member, function in requests:
        with member.random_numbers():
            try:
                answers.append(function())
            except Exception as error:
                answers.append(_Failure(error))
    # The meeting takes the numbers that are left for those of its first member.
    _set_random_state(requests[0][0]._random)
    return answers


def _stops(result: Any) -> bool:
    return isinstance(result, BaseException) and not isinstance(result, Exception)


def _live(member: Member, function: Callable[[Member], Any], results: list[Any]) -> None:
    try:
        member._turn.wait()
        if not member._broken:
            torch.set_num_threads(1)
            _set_random_state(member._random)
            results[member.index] = function(member)
    except BaseException as error:
        results[member.index] = error
    finally:
        member.done = True
        member._meeting.back.set()


class _Failure:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _meet(members: list[Member]) -> None:
    """Answer all requests, equal ones together."""
    groups: dict[Hashable, list[Member]] = {}
    for member in members:
        assert member.request is not None
        how, key, _, modes = member.request
        groups.setdefault((how, key, modes.key), []).append(member)
    for group in groups.values():
        requests = [m.request for m in group if m.request is not None]
        how, _, _, modes = requests[0]
        try:
            with group[0].random_numbers(), modes.set():
                answers = list(how([request[2] for request in requests]))
        except Exception as error:
            answers = [_Failure(error)] * len(group)
        for member, answer in zip(group, answers, strict=True):
            member.request, member.answer = None, answer


class _Modes:
    """What torch keeps for each thread by itself: whether gradients are recorded, and in what precision it computes."""

    def __init__(self, gradients: bool, inference: bool, precision: tuple[Autocast, ...]) -> None:
        self.gradients, self.inference, self.precision = gradients, inference, precision
        self.key = gradients, inference, precision

    @classmethod
    def now(cls) -> _Modes:
        """Those of this thread."""
        precision = tuple(Autocast.now(device) for device in DEVICES)
        return cls(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), precision)

    @contextlib.contextmanager
    def set(self) -> Iterator[None]:
        """The same in this thread."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.gradients))
            for precision in self.precision:
                stack.enter_context(precision.set())
            yield


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    return torch.get_rng_state(), cuda, np.random.get_state(), random.getstate()


def _set_random_state(state: tuple[Any, ...]) -> None:
    cpu, cuda, numpy, python = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
    np.random.set_state(numpy)
    random.setstate(python)
