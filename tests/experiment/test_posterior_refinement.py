"""The plan that refines a posterior: its rounds, what it makes of results and failures, and a real run."""

import itertools
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError, RunError
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.packed import pack, unpack
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.posterior_refinement import PosteriorRefinement
from nni_bayes_nas.experiment.posterior_file import refined_posterior
from nni_bayes_nas.experiment.record import write_json

UNITS = [law.Choice(f"e{i}", ("skip", "conv1", "conv3")) for i in range(3)]


def search_result(n=27):
    q = ArchitecturePosterior(UNITS, [torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)] * 3)
    rows = [{"choices": w.choices, "log_prob": w.log_prob, "params": 10, "macs": 20} for w in q.top_k(n)]
    derived = {"lambda": None, "origin": "mean", "choices": q.derived(), "log_prob": rows[0]["log_prob"], "params": 10}
    return {
        "default": 0.9,
        "search": {"id": "s0", "strategy": "dirichlet_darts", "seconds": 1.0},
        "architectures": [derived],
        "random": [],
        "posterior": q.to_dict(),
        "candidates": pack(rows),
    }


def truth(choices):
    """Loss: every wide convolution helps, and so does a skip connection on the first edge."""
    value = sum({"skip": 0.0, "conv1": 0.1, "conv3": 0.2}[op] for op in choices.values())
    return 1.0 - value - (0.5 if choices["e0"] == "skip" else 0.0)


def plan(**refine):
    values = {"evaluations": 6, "parallel": 2, **refine}
    config = {"experiment": {"plan": "posterior_refinement"}, "refine": values, "search": {"random": 0}}
    return PosteriorRefinement(Config.from_dict(config))


def result_of(spec):
    if spec.kind == "search":
        return search_result()
    if spec.kind == "probe":
        return {"default": 0.5, "val_loss": truth(spec.parameters["choices"]), "epochs": spec.parameters["epochs"]}
    terms = {name: 0.9 for name in ("val_accuracy", "val_precision", "test_accuracy", "test_precision")}
    return {"default": 0.9, **terms, "seconds": 1.0, "params": 10, "macs": 20}


def run(ledger, order=lambda names: names):
    """Every trial that is handed out ends, in some order; gives the names as they were handed out."""
    started = []
    while specs := ledger.take(2):
        started += [spec.name for spec in specs]
        for spec in order(specs):
            ledger.done(spec.name, result_of(spec), "job")
    return started


def test_rounds_then_finalists_then_retraining():
    ledger = Ledger(plan(), retries=0)
    names = run(ledger)
    assert names[0] == "search-s0" and all(name.startswith("probe-s0-c") for name in names[1:7])
    assert all(name.startswith("final-s0-c") for name in names[7:9])
    winner = ledger.summary()["architectures"][0]["retrain"][0]["name"]
    # What was derived is candidate 0, and may be the winner.
    assert set(names[9:]) <= {winner, "retrain-s0-lam1-seed0"} and winner in names[9:] and ledger.finished
    assert winner.removeprefix("retrain").removesuffix("-seed0") in {name.removeprefix("final") for name in names[7:9]}
    assert ledger.spec(names[1]).parameters["epochs"] == 3 and ledger.spec(names[7]).parameters["epochs"] == 8
    tried = [json.dumps(ledger.spec(name).parameters["choices"], sort_keys=True) for name in names[1:7]]
    assert len(set(tried)) == 6
    assert ledger.spec("search-s0").parameters["candidates"] == 32


def test_what_comes_out_is_a_posterior_too(tmp_path):
    """Of a finished refinement; read from the run folder."""
    ledger = Ledger(plan(evaluations=10), retries=0)
    run(ledger)
    summary = ledger.summary()
    write_json(tmp_path / "summary.json", summary)
    q = refined_posterior(tmp_path)
    account = summary["refinement"]["s0"]
    assert len(q) == 27 and sum(math.exp(q.log_prob(one)) for one in q.choices) == pytest.approx(1.0)
    best = q.top_k(5)
    assert [one.choices for one in best] == [row["choices"] for row in account["posterior"][:5]]
    assert math.exp(best[0].log_prob) == pytest.approx(account["posterior"][0]["probability_best"], abs=1e-3)
    # It has seen that a skip connection on the first edge helps, which the search did not know.
    before = ArchitecturePosterior.from_dict(search_result()["posterior"])
    assert q.inclusion()["e0"].get("skip", 0.0) > 2 * before.probability("skip", "e0")
    with pytest.raises(ConfigError, match="of search s1, but it has those of s0"):
        refined_posterior(tmp_path, "s1")
    with pytest.raises(ConfigError, match="but it has those of none"):
        refined_posterior(tmp_path / "nothing")


def test_rungs_train_ever_fewer_for_ever_longer():
    ledger = Ledger(plan(evaluations=10, rungs=[[5, 4], [3, 8], [1, 16]]), retries=0)
    names = [name for name in run(ledger) if name.startswith("final")]
    by_word = {
        word: [n.split("-c")[1] for n in names if n.startswith(f"{word}-")] for word in ("final", "final2", "final3")
    }
    assert [len(found) for found in by_word.values()] == [5, 3, 1] and names == sorted(
        names, key=lambda n: n.split("-")[0]
    )
    assert set(by_word["final3"]) < set(by_word["final2"]) < set(by_word["final"])
    assert [ledger.spec(f"{word}-s0-c{found[0]}").parameters["epochs"] for word, found in by_word.items()] == [4, 8, 16]
    summary = ledger.summary()
    assert [row["epochs"] for row in summary["refinement"]["s0"]["finals"]] == [4] * 5 + [8] * 3 + [16]
    assert summary["architectures"][0]["retrain"][0]["name"] == f"retrain-s0-c{by_word['final3'][0]}-seed0"
    only = Ledger(plan(rungs=[]), retries=0)
    assert not any(name.startswith("final") for name in run(only)) and only.finished
    assert only.summary()["architectures"][0]["origin"] == "refined"


def test_a_rung_that_failed_is_the_last_one():
    ledger = Ledger(plan(evaluations=8, rungs=[[4, 4], [2, 8], [1, 16]]), retries=0)
    run_with(ledger, {"final2": {0, 1}})
    finals = ledger.summary()["refinement"]["s0"]["finals"]
    assert len(finals) == 4 and not any(name.startswith("final3") for name in ledger.entries) and ledger.finished
    best = ledger.summary()["architectures"][0]
    assert best["origin"] == "refined" and best["retrain"]


def test_a_round_waits_for_the_one_before_and_stays_as_it_was():
    p = plan()
    results = {"search-s0": search_result()}
    first = p.trials(results, set())
    a, b = (s.name for s in first[1:])
    assert first[0].name == "search-s0" and {a, b} <= {f"probe-s0-c{c}" for c in range(27)}
    results[b] = {"default": 0.5, "val_loss": 0.3}
    assert p.trials(results, set()) == first
    results[a] = {"default": 0.5, "val_loss": 0.9}
    second = p.trials(results, set())
    assert second[:3] == first and len(second) == 5
    assert PosteriorRefinement(p_config(p)).trials(results, set()) == second


def p_config(p):
    values = {"evaluations": p.refine.evaluations, "parallel": p.refine.parallel, "rungs": p.refine.rungs}
    return Config.from_dict({"experiment": {"plan": "posterior_refinement"}, "refine": values, "search": {"random": 0}})


def test_the_order_in_which_results_come_in_changes_nothing():
    forward, backward = Ledger(plan()), Ledger(plan())
    run(forward)
    run(backward, order=lambda specs: specs[::-1])
    assert {n: e["result"] for n, e in forward.entries.items()} == {n: e["result"] for n, e in backward.entries.items()}


def test_what_comes_out_is_better_than_what_the_search_derived():
    ledger = Ledger(plan(evaluations=10, parallel=2, rungs=[[3, 8]]))
    run(ledger)
    summary = ledger.summary()
    refined, derived = summary["architectures"]
    assert (refined["id"], refined["origin"]) == ("s0-refined", "refined") and derived["origin"] == "mean"
    assert truth(refined["choices"]) < truth(derived["choices"]) and refined["choices"]["e0"] == "skip"
    account = summary["refinement"]["s0"]
    assert len(account["probes"]) == 10 and len(account["finals"]) == 3
    assert account["posterior"][0]["choices"]["e0"] == "skip"
    assert sum(row["probability_best"] for row in account["posterior"]) <= 1 + 1e-6


def run_with(ledger, fails):
    """As `run`; the n-th trials of some kinds fail: {"probe": {0, 3}}."""
    counts, failed = Counter(), []
    while specs := ledger.take(2):
        for spec in specs:
            word = spec.name.split("-")[0]
            if counts[word] in fails.get(word, ()):
                failed.append(spec)
                ledger.died(spec.name, "killed")
            else:
                ledger.done(spec.name, result_of(spec), "job")
            counts[word] += 1
    return failed


def test_failed_probes_are_left_out():
    ledger = Ledger(plan(), retries=0)
    run_with(ledger, {"probe": {0, 3}, "final": {0}})
    assert ledger.finished and ledger.verdict() is None
    assert len(ledger.summary()["refinement"]["s0"]["probes"]) == 4
    assert ledger.summary()["architectures"][0]["origin"] == "refined"


def test_all_finalists_failed_leaves_the_best_probe():
    ledger = Ledger(plan(), retries=0)
    run_with(ledger, {"final": {0, 1}})
    refined = ledger.summary()["architectures"][0]
    probes = ledger.summary()["refinement"]["s0"]["probes"]
    assert refined["choices"] == min(probes, key=lambda row: row["val_loss"])["choices"]


def test_all_probes_failed_is_the_end():
    ledger = Ledger(plan(), retries=0)
    run_with(ledger, {"probe": set(range(6))})
    assert "every short training failed" in ledger.verdict()


def test_one_search_without_probes_leaves_the_others():
    values = {"evaluations": 4, "rungs": [[1, 8]]}
    config = {"experiment": {"plan": "posterior_refinement"}, "refine": values, "search": {"random": 0, "searches": 2}}
    ledger = Ledger(PosteriorRefinement(Config.from_dict(config)), retries=0)
    while specs := ledger.take(2):
        for spec in specs:
            if spec.name.startswith("probe-s0"):
                ledger.died(spec.name, "killed")
            else:
                ledger.done(spec.name, result_of(spec), "job")
    assert ledger.verdict() is None and ledger.finished
    assert [row["id"] for row in ledger.summary()["architectures"]] == ["s0-mean", "s1-refined", "s1-mean"]


def test_a_late_result_is_never_that_of_another_architecture():
    """A probe that was given up reports after the rounds that went on without it, and after the retraining."""
    ledger = Ledger(plan(evaluations=8), retries=0)
    (late, *_) = run_with(ledger, {"probe": {0}})
    # It says that it was the best of all.
    ledger.done(late.name, {"default": 0.9, "val_loss": -5.0}, "job")
    run(ledger)
    for name, entry in ledger.entries.items():
        if name.startswith(("probe", "final")) and entry["status"] == "done" and name != late.name:
            spec = ledger.spec(name)
            assert entry["result"]["val_loss"] == pytest.approx(truth(spec.parameters["choices"]))
            assert name.endswith(f"-c{spec.parameters['candidate']}")
    refined = ledger.summary()["architectures"][0]
    names = {row["name"] for row in refined["retrain"]}
    assert ledger.finished and all(ledger.spec(n).parameters["choices"] == refined["choices"] for n in names)


def test_a_late_result_of_a_rung_leaves_nobody_waited_for():
    """A longer training that was given up reports as the best while the next rung trains another architecture."""
    ledger, late, dropped = Ledger(plan(evaluations=8, rungs=[[4, 4], [1, 8]]), retries=0), None, None
    while dropped is None:
        for spec in ledger.take(2):
            word = spec.name.split("-")[0]
            if word == "final" and late is None:
                late = spec
                ledger.died(spec.name, "killed")
            elif word == "final2":
                dropped = spec
            else:
                ledger.done(spec.name, result_of(spec), "job")
    ledger.done(late.name, {"default": 0.9, "val_loss": -5.0}, "job")
    assert dropped.name not in ledger.order() and not ledger.finished
    names = run(ledger)
    assert names[0] == late.name.replace("final", "final2") and ledger.finished
    assert ledger.summary()["architectures"][0]["choices"] == late.parameters["choices"]
    assert len(ledger.summary()["refinement"]["s0"]["finals"]) == 5


def test_while_it_goes_on_there_is_no_verdict():
    ledger = Ledger(plan())
    ledger.take(1)
    ledger.done("search-s0", search_result())
    assert ledger.verdict() is None and ledger.summary()["architectures"] == []


def test_fewer_candidates_than_evaluations():
    ledger = Ledger(plan(evaluations=6, candidates=6))
    ledger.take(1)
    ledger.done("search-s0", {**search_result(), "candidates": pack(unpack(search_result()["candidates"])[:3])})
    names = run(ledger)
    assert {n for n in names if n.startswith("probe")} == {"probe-s0-c0", "probe-s0-c1", "probe-s0-c2"}


@pytest.mark.parametrize("how", ["thompson", "expected_improvement"])
def test_both_acquisitions(how):
    ledger = Ledger(plan(acquisition=how, evaluations=8))
    run(ledger)
    losses = [row["val_loss"] for row in ledger.summary()["refinement"]["s0"]["probes"]]
    assert min(losses) == pytest.approx(
        min(
            truth(dict(zip(("e0", "e1", "e2"), ops, strict=True)))
            for ops in itertools.product(UNITS[0].options, repeat=3)
        ),
        abs=0.11,
    )
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("refine", "match"),
    [
        ({"evaluations": 0}, "refine.evaluations` must be at least 1"),
        ({"prior_weight": -1.0}, "refine.prior_weight` must not be negative"),
        ({"rungs": [[9, 8]], "evaluations": 5}, r"rungs` must be pairs, of a number from 1 to 5 .* got \(9, 8\)"),
        ({"rungs": [[4, 8], [5, 16]]}, r"from 1 to 4 and then of more than 8 epochs, got \(5, 16\)"),
        ({"rungs": [[4, 8], [2, 8]]}, r"of more than 8 epochs, got \(2, 8\)"),
        ({"epochs": 8}, r"refine.rungs` must be .* of more than 8 epochs, got \(2, 8\)"),
        ({"rungs": [[0, 8]]}, r"of a number from 1 to 14 .* got \(0, 8\)"),
        ({"rungs": [4, 8]}, r"refine\.rungs\[0\]"),
        ({"acquisition": "ucb"}, "acquisition"),
        ({"epoch": 3}, "epochs"),
    ],
)
def test_settings_that_cannot_be(refine, match):
    with pytest.raises(ConfigError, match=match):
        Config.from_dict({"refine": refine})


def test_candidates_travel_as_short_text():
    rows = unpack(search_result()["candidates"])
    assert len(rows) == 27 and rows[0]["choices"].keys() == {"e0", "e1", "e2"}
    many = rows * 40
    assert unpack(pack(many)) == many and len(pack(many)) < len(json.dumps(many)) / 10
    assert re.fullmatch(r"[\w=-]+", pack(many))
    with pytest.raises(RunError, match="unpacking failed"):
        unpack("no such text")


def test_a_size_below_the_smallest_is_refused_before_the_search():
    values = {
        "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
        "strategy": {"name": "dirichlet_darts"},
        "experiment": {"plan": "posterior_refinement", "device": "cpu"},
    }
    with pytest.raises(ConfigError, match=r"smallest of the space has (\d+) parameters, got 5") as caught:
        validate(Config.from_dict({**values, "refine": {"max_params": 5, "evaluations": 4}}))
    least = int(re.search(r"has (\d+)", str(caught.value))[1])
    validate(Config.from_dict({**values, "refine": {"max_params": least, "evaluations": 4}}))
    with pytest.raises(ConfigError, match=r"distinct architectures, of which there are \d+ at the end .*, got 100000"):
        validate(Config.from_dict({**values, "refine": {"evaluations": 100_000}}))


@pytest.mark.nni
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_by_a_real_manager(pipeline):
    """A search, four short trainings in rounds of two, two longer ones, and retraining; and the report of it."""
    values = {
        "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
        "data": {"limit": 200},
        "strategy": {"name": "dirichlet_darts"},
        "search": {"epochs": 2, "warmup_epochs": 1, "random": 0},
        "refine": {"evaluations": 4, "parallel": 2, "epochs": 1, "rungs": [[2, 2]]},
        "retrain": {"epochs": 1},
        "experiment": {"plan": "posterior_refinement", "device": "cpu", "concurrency": 2, "threads": 1},
    }
    run = pipeline(values)
    out = run.run()
    account = run.summary["refinement"]["s0"]
    assert len(account["probes"]) == 4 and 1 <= len(account["finals"]) <= 2
    assert sum(row["probability_best"] for row in account["posterior"]) <= 1 + 1e-9
    origins = [row["origin"] for row in run.summary["architectures"]]
    assert origins[0] == "refined" and "mean" in origins
    process = account["process"]
    assert {len(values) for values in process.values()} == {len(process["mean"])}
    best = max((row["candidate"] for row in account["finals"]), key=process["mean"].__getitem__)
    chosen = next(row for row in account["probes"] if row["candidate"] == best)
    assert run.summary["architectures"][0]["choices"] == chosen["choices"]
    jobs = [name for _, name in run.records()["jobs"]]
    assert sum(name.startswith("probe-s0-c") for name in jobs) == 4
    assert "report.html" in out and "What the search is sure of" in (run.output / "report.html").read_text()
