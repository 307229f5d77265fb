"""Functions that meet: who computes with whom, in what order, and what becomes of errors."""

import random

import numpy as np
import pytest
import torch

from nni_bayes_nas.lockstep import Lockstep, one_by_one


def test_those_who_bring_the_same_compute_together():
    calls = []

    def double(values):
        calls.append(list(values))
        return [2 * v for v in values]

    def run(member, n):
        return [member.together(double, 10 * member.index + step, key=step) for step in range(n)]

    results = Lockstep().run([lambda m: run(m, 2), lambda m: run(m, 3), lambda m: run(m, 2)])
    assert results == [[0, 2], [20, 22, 24], [40, 42]]
    # In order of the members; who has ended is not waited for.
    assert calls == [[0, 10, 20], [1, 11, 21], [12]]


def test_other_keys_and_other_gradient_modes_are_computed_apart():
    calls = []

    def record(values):
        calls.append((list(values), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return values

    def run(member):
        with torch.no_grad() if member.index == 0 else torch.enable_grad():
            member.together(record, member.index)
        with torch.inference_mode(member.index == 1):
            member.together(record, member.index)
        return member.together(record, member.index, key=member.index % 2)

    assert Lockstep().run([run] * 3) == [0, 1, 2]
    assert calls == [
        ([0], False, False),
        ([1, 2], True, False),
        ([0, 2], True, False),
        ([1], False, True),
        ([0, 2], True, False),
        ([1], True, False),
    ]


def test_an_error_ends_its_member_alone():
    def run(member):
        if member.index == 1:
            raise ValueError("mine")
        return member.together(sum_of, member.index)

    def sum_of(values):
        return [sum(values)] * len(values)

    first, second, third = Lockstep().run([run] * 3)
    assert (first, third) == (2, 2) and isinstance(second, ValueError)


def test_an_error_of_all_is_raised_in_each():
    def fail(values):
        raise ValueError(f"of {values}")

    def run(member):
        with pytest.raises(ValueError, match=r"of \[0, 1\]"):
            member.together(fail, member.index)
        return "went on"

    assert Lockstep().run([run] * 2) == ["went on"] * 2


def test_each_has_random_numbers_of_its_own():
    def draw(_):
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def run(member):
        torch.manual_seed(member.index)
        np.random.seed(member.index)
        random.seed(member.index)
        found = []
        for _ in range(3):
            found.append(draw(member))
            member.together(lambda values: values, None)
        return found

    state = torch.get_rng_state()
    together = Lockstep().run([run] * 3)
    assert torch.equal(torch.get_rng_state(), state)
    for i in range(3):
        torch.manual_seed(i)
        np.random.seed(i)
        random.seed(i)
        assert together[i] == [draw(None) for _ in range(3)]


def test_what_stops_the_meeting_ends_all_members():
    ended = []

    def stop(values):
        raise KeyboardInterrupt

    def run(member):
        try:
            member.together(stop, None)
        finally:
            ended.append(member.index)

    with pytest.raises(KeyboardInterrupt):
        Lockstep().run([run] * 3)
    assert ended == [0, 1, 2]


def test_a_member_that_is_stopped_stops_all():
    def run(member):
        if member.index == 1:
            raise SystemExit(3)
        member.together(lambda values: values, None)
        return "not reached"

    with pytest.raises(SystemExit):
        Lockstep().run([run] * 3)


def test_what_is_done_together_uses_the_threads_of_the_caller():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = Lockstep().run([lambda m: (torch.get_num_threads(), m.together(threads, None))] * 2)
        assert seen == [(1, 2)] * 2 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def threads(values):
    torch.ones(100_000).sum()
    return [torch.get_num_threads()] * len(values)


def test_one_by_one_each_has_the_random_numbers_that_it_would_have_alone():
    def run(member):
        torch.manual_seed(member.index)
        first = torch.rand(())
        inside = member.together(one_by_one, (member, lambda: (torch.rand(()), torch.get_num_threads())))
        return [first, inside[0], torch.rand(())], inside[1]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = Lockstep().run([run] * 3)
    finally:
        torch.set_num_threads(before)
    for index, (numbers, threads) in enumerate(results):
        generator = torch.Generator().manual_seed(index)
        assert numbers == [torch.rand((), generator=generator) for _ in range(3)]
        assert threads == 2


def test_one_by_one_an_error_is_that_of_its_own_member():
    def run(member):
        return member.together(one_by_one, (member, lambda: 1 // member.index))

    first, second, third = Lockstep().run([run] * 3)
    assert isinstance(first, ZeroDivisionError) and (second, third) == (1, 0)
