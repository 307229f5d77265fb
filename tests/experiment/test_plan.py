"""SearchAndRetrain and the ledger, without NNI."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.search_and_retrain import SearchAndRetrain


def config(searches: int = 1, repeats: int = 1, seed: int = 3) -> Config:
    return Config.from_dict({"search": {"searches": searches}, "retrain": {"repeats": repeats}, "seed": seed})


def found(ops: list[int], random: list[int] = []) -> dict[str, Any]:  # noqa: B006
    """A search's result with one architecture for each of ``ops``, at growing lambda."""
    rows = [
        {"lambda": 10.0**i, "origin": "lambda", "choices": {"op": op}, "log_prob": -1.0, "params": 9, "macs": 1}
        for i, op in enumerate(ops)
    ]
    rand = [
        {"lambda": None, "origin": "random", "choices": {"op": op}, "params": 7, "macs": 2, "matches": 0}
        for op in random
    ]
    return {"default": 0.9, "search": {"strategy": "x", "seed": 3}, "architectures": rows, "random": rand, "curve": [1]}


def trained(accuracy: float) -> dict[str, Any]:
    return {
        "default": accuracy,
        "val_accuracy": accuracy,
        "test_accuracy": accuracy,
        "params": 8,
        "macs": 3,
        "seconds": 1.0,
    }


def names(ledger: Ledger) -> list[str]:
    return [spec.name for spec in ledger.take()]


def test_search_then_distinct_architectures() -> None:
    ledger = Ledger(SearchAndRetrain(config(repeats=2)))
    assert names(ledger) == ["search-s0"]
    assert ledger.take() == []
    ledger.done("search-s0", found([1, 2, 2, 1, 5], random=[7, 5]), "job")
    expected = [f"retrain-s0-{stem}-seed{seed}" for stem in ("lam0", "lam1", "lam4", "rand0") for seed in (3, 4)]
    specs = ledger.take()
    assert [spec.name for spec in specs] == expected
    assert specs[2].parameters["choices"] == {"op": 2} and specs[2].parameters["seed"] == 3
    assert specs[2].parameters["lambda"] == 10.0 and specs[2].kind == "retrain"


def test_summary_shares_a_trial_among_identical_choices() -> None:
    ledger = Ledger(SearchAndRetrain(config(repeats=2)))
    ledger.take()
    ledger.done("search-s0", found([1, 2, 2], random=[7]), "job0")
    for i, spec in enumerate(ledger.take()):
        ledger.done(spec.name, trained(0.5 + 0.1 * i), f"job{i + 1}")
    summary = ledger.summary()
    assert [row["id"] for row in summary["architectures"]] == ["s0-lam-1", "s0-lam-10", "s0-lam-100", "s0-rand-0"]
    assert [[r["trial"] for r in row["retrain"]] for row in summary["architectures"]] == [
        ["job1", "job2"], ["job3", "job4"], ["job3", "job4"], ["job5", "job6"],
    ]  # fmt: skip
    first = summary["architectures"][0]
    assert math.isclose(first["test_accuracy_mean"], 0.55)
    assert math.isclose(first["test_accuracy_sd"], 0.1 / math.sqrt(2))
    # Counted on the network that was retrained, not on the search's own.
    assert (first["params"], first["macs"]) == (8, 3)
    assert summary["searches"] == [{"strategy": "x", "seed": 3, "id": "s0"}]
    assert summary["curves"] == {"s0": [1]}


def test_summary_has_the_latency_that_the_search_knew() -> None:
    result = found([1], random=[7])
    result["architectures"][0]["latency"] = 1.5
    ledger = Ledger(SearchAndRetrain(config()))
    ledger.take()
    ledger.done("search-s0", result)
    ledger.done(ledger.take()[0].name, trained(0.5))
    derived, random = ledger.summary()["architectures"]
    assert derived["latency"] == 1.5 and derived["params"] == 8
    assert "latency" not in random


def test_no_lambda_and_equal_lambdas_have_ids_of_their_own() -> None:
    result = found([1, 2])
    for row in result["architectures"]:
        row["lambda"] = 0.5
    ledger = Ledger(SearchAndRetrain(config(searches=2)))
    ledger.take()
    ledger.done("search-s0", result)
    alone = found([1])
    alone["architectures"][0].update({"lambda": None, "origin": "mean"})
    ledger.done("search-s1", alone)
    assert [row["id"] for row in ledger.summary()["architectures"]] == ["s0-lam-0.5", "s0-lam-0.5-1", "s1-mean"]


def test_summary_before_anything_is_known() -> None:
    assert Ledger(SearchAndRetrain(config())).summary() == {"searches": [], "architectures": [], "curves": {}}


def test_a_dead_trial_is_retried_once_then_left_out() -> None:
    ledger = Ledger(SearchAndRetrain(config(searches=2)), retries=1)
    ledger.take()
    ledger.done("search-s1", found([1]))
    assert ledger.died("search-s0", "killed") == "retry"
    assert ledger.died("search-s0", "killed") == "ignored"
    assert names(ledger) == ["search-s0", "retrain-s1-lam0-seed3"]
    assert ledger.died("search-s0", "killed again") == "failed"
    assert ledger.failures == [{"trial": "search-s0", "attempts": 2, "cause": "killed again"}]
    assert ledger.verdict() is None
    ledger.done("retrain-s1-lam0-seed3", trained(1.0))
    assert ledger.finished and ledger.verdict() is None


@pytest.mark.parametrize("die_at", ["search", "retrain"])
def test_a_plan_that_cannot_finish_says_why(die_at: str) -> None:
    ledger = Ledger(SearchAndRetrain(config()), retries=0)
    ledger.take()
    if die_at == "retrain":
        ledger.done("search-s0", found([1]))
        ledger.take()
    (running,) = ledger.names("running")
    assert ledger.verdict() is None
    ledger.died(running, "out of memory")
    verdict = ledger.verdict()
    assert verdict is not None and f"{running}: out of memory" in verdict


def test_random_architectures_alone_are_no_result() -> None:
    ledger = Ledger(SearchAndRetrain(config(repeats=2)), retries=0)
    ledger.take()
    ledger.done("search-s0", found([1, 2], random=[7, 1]))
    ledger.take()
    ledger.done("retrain-s0-rand0-seed3", trained(0.5))
    for name in ("lam0-seed3", "lam0-seed4", "lam1-seed3"):
        ledger.died(f"retrain-s0-{name}", "out of memory")
    assert ledger.verdict() is None
    ledger.died("retrain-s0-lam1-seed4", "out of memory")
    verdict = ledger.verdict()
    assert verdict is not None and "lam1-seed4: out of memory" in verdict


def test_a_late_result_counts() -> None:
    ledger = Ledger(SearchAndRetrain(config()), retries=0)
    ledger.take()
    ledger.died("search-s0", "no result")
    assert ledger.verdict() is not None
    assert ledger.done("search-s0", found([1]))
    assert ledger.verdict() is None and ledger.failures == []
    assert not ledger.done("search-s0", found([2])), "the first result stands"


def test_recover_does_not_count_the_attempt() -> None:
    plan = SearchAndRetrain(config())
    ledger = Ledger(plan, retries=0)
    ledger.take()
    again = Ledger(plan, 0, json.loads(json.dumps(ledger.entries)))
    assert again.recover() == ["search-s0"]
    assert again.entries["search-s0"]["attempts"] == 0
    # NNI itself starts it again.
    assert again.running("search-s0") and not again.running("search-s0")
    assert again.take() == []
    assert again.entries["search-s0"]["attempts"] == 1


@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2))
def test_any_order_of_results_deaths_and_restarts_ends(data: Any, searches: int, repeats: int, retries: int) -> None:
    """No trial is handed out after it is done, none more often than allowed, and the plan comes to an end."""
    plan = SearchAndRetrain(config(searches, repeats))
    ledger = Ledger(plan, retries)
    handed: dict[str, int] = {}
    restarts = 0
    for _ in range(400):
        if ledger.finished or ledger.verdict() is not None:
            break
        known = set(ledger.order())
        for spec in ledger.take(data.draw(st.integers(1, 3))):
            assert ledger.entries[spec.name]["result"] is None
            handed[spec.name] = handed.get(spec.name, 0) + 1
        running = ledger.names("running")
        assert running, "the plan is not at its end, and nothing runs"
        name = data.draw(st.sampled_from(running))
        event = data.draw(st.sampled_from(["done", "done", "died", "restart"]))
        if event == "restart" and restarts < 3:
            restarts += 1
            for running_name in running:
                handed[running_name] -= 1
            ledger = Ledger(plan, retries, json.loads(json.dumps(ledger.entries)))
            ledger.recover()
        elif event == "died":
            ledger.died(name, "killed")
        else:
            ops = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
            ledger.done(name, found(ops, random=ops[:1]) if name.startswith("search") else trained(0.5))
        assert known <= set(ledger.order()), "trials never become fewer"
        json.dumps(ledger.summary())
    else:
        pytest.fail("no end")
    assert all(count <= retries + 1 for count in handed.values())
    assert len(ledger.results) + len(ledger.failures) == len(ledger.order()) or ledger.verdict() is not None
    assert json.loads(json.dumps(ledger.entries)) == ledger.entries
