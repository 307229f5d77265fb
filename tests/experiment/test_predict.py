"""The plan of predictions: its trials, what they give, what they refuse; once by a real manager."""

import json

import pytest
import torch
from small_predict import MADE_UP, SMALL, config, silent

from nni_bayes_nas.config import Config, DataConfig, config_to_yaml
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.bank import _budgets, read_bank, run_bank, tasks_of, vocabulary_of, without_leaks
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.parts import Parts, sources_of, unsplit
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.architecture_prediction import ArchitecturePrediction
from nni_bayes_nas.experiment.predict import apart, budgets_for, run_predict
from nni_bayes_nas.experiment.record import read_json
from nni_bayes_nas.experiment.verify import predicted, run_verify
from nni_bayes_nas.prediction.predictor import Predictor
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture
from nni_bayes_nas.prediction.sparse_net import build
from nni_bayes_nas.prediction.training import scores


def test_stages_wait_for_one_another():
    plan = ArchitecturePrediction(config(tasks=7, kinds=["seq2seq", "doubly_recurrent"]))
    ledger = Ledger(plan, retries=0)
    banks = ledger.take()
    assert [(spec.name, spec.parameters) for spec in banks] == [
        ("bank-0", {"first": 0, "count": 3}),
        ("bank-1", {"first": 3, "count": 3}),
        ("bank-2", {"first": 6, "count": 1}),
    ]
    numbers = {"tasks": 3, "entries": 6, "as_good": 2, "tasks_as_good": 1, "seconds": 2.5}
    found = {**numbers, "methods": {"snip": 6}, "default": 0.5}
    ledger.done("bank-0", found)
    ledger.died("bank-1", "killed")
    assert ledger.take() == []
    ledger.done("bank-2", {**found, "tasks": 1, "methods": {"random": 6}})
    bank = ledger.summary()["prediction"]["bank"]
    assert bank == {
        "tasks": 4,
        "entries": 12,
        "as_good": 4,
        "tasks_as_good": 2,
        "seconds": 5.0,
        "methods": {"random": 6, "snip": 6},
    }
    fits = ledger.take()
    assert [spec.name for spec in fits] == ["predict-seq2seq", "predict-doubly_recurrent"]
    # The one that failed may have left entries.
    assert fits[0].parameters == {"decoder": "seq2seq", "banks": ["bank-0", "bank-1", "bank-2"], "seed": 0}
    predictions = [{"budget": 13, "seconds": 0.1, "networks": []}, {"budget": 26, "seconds": 0.1, "networks": []}]
    ledger.done("predict-seq2seq", {"predictions": predictions, "kind": "seq2seq", "bank": {"tasks": 9}})
    assert ledger.take() == []
    ledger.died("predict-doubly_recurrent", "killed")
    assert [(spec.name, spec.parameters["predictions"], spec.parameters["dense"]) for spec in ledger.take()] == [
        ("verify-13", ["predict-seq2seq"], False),
        ("verify-26", ["predict-seq2seq"], True),
    ]
    ledger.done("verify-13", {"budget": 13, "rows": []})
    assert ledger.summary()["prediction"]["bank"] == {"tasks": 9}  # with what an earlier run brought
    assert [row["budget"] for row in ledger.summary()["prediction"]["verified"]] == [13]
    assert ledger.verdict() is None


def test_what_cannot_go_on():
    ledger = Ledger(ArchitecturePrediction(config()), retries=0)
    for spec in ledger.take():
        ledger.died(spec.name, "out of memory")
    assert "every search of the bank failed" in str(ledger.verdict())
    with_bank = Ledger(ArchitecturePrediction(config(tasks=0, bank="bank.jsonl")), retries=0)
    (fit,) = with_bank.take()
    assert fit.parameters["banks"] == []
    with_bank.died(fit.name, "killed")
    assert "every meta-model failed" in str(with_bank.verdict())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All trials of a run, one after the other."""
    trials = tmp_path_factory.mktemp("run") / "trials"
    settings, results, seen = config(kinds=["seq2seq", "doubly_recurrent"]), {}, []
    functions = {"bank": run_bank, "predict": run_predict, "verify": run_verify}
    ledger = Ledger(ArchitecturePrediction(settings), retries=0)
    while specs := ledger.take():
        for spec in specs:
            (folder := trials / spec.name).mkdir(parents=True)
            results[spec.name] = functions[spec.kind](settings, spec.parameters, folder, seen.append)
            ledger.done(spec.name, json.loads(json.dumps(results[spec.name])))
    return settings, trials, results, seen, ledger


def test_what_the_trials_give(run):
    settings, trials, results, seen, ledger = run
    assert ledger.finished and all(0 <= row["default"] <= 1 for row in seen)
    bank = read_bank([trials.parent])
    entries = bank.entries
    assert bank.sources == {"wine": DataConfig("wine"), "breast_cancer": DataConfig("breast_cancer")}
    assert results["predict-seq2seq"]["bank"]["seconds"] == pytest.approx(sum(bank.seconds), abs=0.01)
    # Two budgets of each of four tasks, of two data sets in turn.
    assert [entry.task.source for entry in entries] == [*(["wine"] * 2 + ["breast_cancer"] * 2) * 2]
    assert results["bank-0"]["entries"] == 6 and results["bank-1"]["entries"] == 2
    assert sum(results["bank-0"]["methods"].values()) == 6
    for kind in settings.predict.kinds:
        found = results[f"predict-{kind}"]
        assert found["entries"] == 6 and len(found["errors"]) == 2 and found["default"] <= 1
        assert [one["budget"] for one in found["predictions"]] == budgets_for(settings, 13, 3)
        for one in found["predictions"]:
            nets = predicted(trials / f"predict-{kind}", one["budget"])
            assert len(nets) == len(one["networks"]) and all(net.n_connections <= one["budget"] for net in nets)
        for row in found["errors"]:
            assert 0 <= row["inputs"] <= 1 and row["nats"] > 0 and row["distance"] > 0
            assert all(0 <= value <= 1 for value in row["layers"])
    for budget in budgets_for(settings, 13, 3):
        rows = results[f"verify-{budget}"]["rows"]
        dense = ["dense"] if budget == 26 else []
        assert [row["method"] for row in rows] == ["seq2seq", "doubly recurrent", "random", *dense]
        assert all(row["connections"] <= budget or row["method"] == "dense" for row in rows)
        best = min((row for row in rows if row["predicted"]), key=lambda row: row["val_loss"])
        assert results[f"verify-{budget}"]["default"] == best["val_accuracy"]


def test_the_best_predicted_network_is_kept(run):
    settings, trials, results, _, _ = run
    folder = trials / "verify-26"
    net = build(SparseArchitecture.from_dict(read_json(folder / "network.json")), 0)
    held = torch.load(folder / "network.pt", weights_only=True)
    net.load_state_dict(held["state"])
    data = load_data(settings.data)
    stored, (x, y) = data.val[:][0] * data.sd + data.mean, data.val[:]
    loss, accuracy = scores(net, (stored - held["mean"]) / held["sd"], y)
    assert x.shape == stored.shape
    ours = [row for row in results["verify-26"]["rows"] if row["predicted"]]
    best = min(ours, key=lambda row: row["val_loss"])
    assert loss == pytest.approx(best["val_loss"], abs=1e-5) and accuracy == pytest.approx(best["val_accuracy"])


def test_a_bank_that_was_killed_goes_on(run, tmp_path):
    settings, trials, results, _, _ = run
    lines = (trials / "bank-0" / "bank.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    # Killed in the middle of the fourth line: the second task is searched again with its second budget alone.
    (tmp_path / "bank.jsonl").write_text("".join(lines[:3]) + lines[3][:50], encoding="utf-8")
    again = run_bank(settings, {"first": 0, "count": 3}, tmp_path, silent)
    kept = [json.loads(line) for line in (tmp_path / "bank.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept[:3] == [json.loads(line) for line in lines[:3]]
    for ours, theirs in zip(kept, map(json.loads, lines), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert again["entries"] == 6 and again["default"] == results["bank-0"]["default"]


def test_a_bank_has_the_budgets_of_predictions():
    """A tenth of the dense network of a part with 30 features and two classes: of 30 8 + 8 8 + 8 2 connections."""
    settings = config(dense_share=0.1).predict
    assert _budgets(30, 2, settings, vocabulary_of(settings)) == [30, 32, 60]


def test_tasks_are_kept_out_with_all_their_budgets(run):
    _, trials, _, _, _ = run
    entries = read_bank([trials / "bank-0" / "bank.jsonl", trials / "bank-1" / "bank.jsonl"]).entries
    known, kept = apart(entries, 0.25, 0)
    assert len(known) == 6 and len(kept) == 2 and len({entry.task for entry in kept}) == 1
    assert not {entry.task for entry in kept} & {entry.task for entry in known}
    assert apart(entries, 0.0, 0) == (entries, [])
    assert len(apart(entries, 0.99, 0)[0]) == 2  # one task at least to learn from


def test_an_earlier_bank_is_used_again(run, tmp_path):
    _, trials, _, _, _ = run
    file = trials / "bank-0" / "bank.jsonl"
    settings = validate(config(tasks=0, bank=str(file), held_out=0.0))
    found = run_predict(settings, {"decoder": "seq2seq", "banks": [], "seed": 1}, tmp_path, silent)
    assert found["entries"] == 6 and found["errors"] == [] and found["default"] == -found["loss"]
    # The bank says its data itself.
    validate(config(tasks=0, bank=str(trials.parent), sources=[{"name": "digits"}]))
    with pytest.raises(ConfigError, match="widths must be among"):
        validate(config(tasks=0, bank=str(file), widths=[5, 7]))
    lines = file.read_text(encoding="utf-8").splitlines()
    (tmp_path / "one.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="at least two different best networks"):
        validate(config(tasks=0, bank=str(tmp_path / "one.jsonl")))
    row = json.loads(lines[0])
    for change, match in (({"data": None}, "must say its data"), ({"data": {"name": "dig"}}, "unknown data set")):
        (tmp_path / "bad.jsonl").write_text(json.dumps({**row, **change}) + "\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=match):
            validate(config(tasks=0, bank=str(tmp_path / "bad.jsonl")))
    with pytest.raises(ConfigError, match=r"must be a bank.jsonl with entries"):
        validate(config(tasks=0, bank=str(tmp_path / "none.jsonl")))
    (tmp_path / "other.jsonl").write_text('{"x": 1}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="a line of a bank must be"):
        validate(config(tasks=0, bank=str(tmp_path / "other.jsonl")))


def test_a_bank_grows_by_tasks_that_it_does_not_have(run, tmp_path):
    """The same seed and sources draw the same tasks: those that are known are passed over."""
    _, trials, _, _, _ = run
    known = {entry.task for entry in read_bank([trials.parent]).entries}
    settings = config(tasks=3, bank=str(trials.parent))
    fresh = tasks_of(settings, Parts(settings), 3)
    assert len(known) == 4 and len(fresh) == 3 and not known & set(fresh)
    assert fresh == Parts(settings).tasks(7)[4:] and tasks_of(settings, Parts(settings), 2) == fresh[:2]


def test_a_trial_of_the_bank_that_failed_leaves_what_it_had(run, tmp_path):
    settings, trials, _, _, _ = run
    for name, lines in (("bank-0", None), ("bank-1", 1), ("bank-2", 0)):
        (folder := tmp_path / name).mkdir()
        if lines != 0:
            text = (trials / ("bank-0" if lines is None else "bank-1") / "bank.jsonl").read_text(encoding="utf-8")
            (folder / "bank.jsonl").write_text("".join(text.splitlines(keepends=True)[:lines]), encoding="utf-8")
    (folder := tmp_path / "predict-seq2seq").mkdir()
    parameters = {"decoder": "seq2seq", "banks": ["bank-0", "bank-1", "bank-2"], "seed": 0}
    assert run_predict(settings, parameters, folder, silent)["bank"]["entries"] == 7


def test_parts_of_the_same_data_that_are_split_otherwise_are_left_out(run, tmp_path):
    """Their objects may be those of validation and test here."""
    _, trials, _, _, _ = run
    bank = read_bank([trials.parent])
    assert without_leaks(DataConfig("wine"), bank) is bank
    kept = without_leaks(DataConfig("wine", test_fraction=0.4), bank)
    assert set(bank.sources) == {"wine", "breast_cancer"} and set(kept.sources) == {"breast_cancer"}
    assert 0 < len(kept.entries) == len(kept.seconds) < len(bank.entries)
    lines = [json.loads(line) for line in (trials / "bank-0" / "bank.jsonl").read_text(encoding="utf-8").splitlines()]
    alone = tmp_path / "wine.jsonl"
    alone.write_text("".join(json.dumps(r) + "\n" for r in lines if r["data"]["name"] == "wine"), encoding="utf-8")
    values = config(tasks=0, bank=str(alone)).to_dict() | {"data": {"name": "wine", "test_fraction": 0.4}}
    with pytest.raises(ConfigError, match="of wine alone, split in another way"):
        validate(Config.from_dict(values))


def test_banks_that_are_no_text_or_have_no_networks(run, tmp_path):
    _, trials, _, _, _ = run
    (tmp_path / "model.pt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ConfigError, match=r"must be a bank.jsonl with entries"):
        validate(config(tasks=0, bank=str(tmp_path / "model.pt")))
    row = json.loads((trials / "bank-0" / "bank.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (tmp_path / "empty.jsonl").write_text(json.dumps({**row, "found": []}) + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="a line of a bank must be"):
        validate(config(tasks=0, bank=str(tmp_path / "empty.jsonl")))


def test_what_is_left_out_must_be_there(run, tmp_path):
    settings, trials, _, _, _ = run
    (folder := tmp_path / "x").mkdir()
    parameters = {"decoder": "seq2seq", "banks": [], "seed": 0, "left_out": "wines"}
    whole_bank = Config.from_dict({**settings.to_dict(), "predict": {**SMALL, "tasks": 0, "bank": str(trials.parent)}})
    with pytest.raises(ConfigError, match="left_out must name data of the bank, did you mean `wine`"):
        run_predict(whole_bank, parameters, folder, silent)


def test_what_is_left_out_has_no_part_in_the_fit(run, tmp_path, monkeypatch):
    settings, trials, _, _, _ = run
    (folder := tmp_path / "x").mkdir()
    parameters = {"decoder": "seq2seq", "banks": [], "seed": 0, "left_out": "breast_cancer"}
    whole_bank = Config.from_dict({**settings.to_dict(), "predict": {**SMALL, "tasks": 0, "bank": str(trials.parent)}})
    learned, fitted = {"fit": [], "fit_ranker": []}, []

    def watch(name):
        method = getattr(Predictor, name)

        def watched(self, entries, *arguments, **options):
            learned[name].extend(entry.task.source for entry in entries)
            return method(self, entries, *arguments, **options)

        monkeypatch.setattr(Predictor, name, watched)

    for name in learned:
        watch(name)
    result = run_predict(whole_bank, parameters, folder, silent, fitted.append)
    assert [set(sources) for sources in learned.values()] == [{"wine"}] * 2
    assert {row["source"] for row in result["errors"]} == {"breast_cancer"}
    # What has learned from them already predicts the same, and learns no more.
    n = {name: len(sources) for name, sources in learned.items()}
    again = run_predict(whole_bank, parameters, folder, silent, None, fitted[0])
    assert {name: len(sources) for name, sources in learned.items()} == n and again["seconds_fit"] == 0.0
    assert result["seconds_fit"] > 0 and again["loss"] == result["loss"]
    nets = [[[one["widths"] for one in b["networks"]] for b in r["predictions"]] for r in (result, again)]
    assert nets[0] == nets[1]


def test_nothing_is_learned_from_what_is_unseen(run, tmp_path):
    """Of two data sets one is left out and one unseen: there is nothing else."""
    settings, trials, _, _, _ = run
    whole_bank = Config.from_dict({**settings.to_dict(), "predict": {**SMALL, "tasks": 0, "bank": str(trials.parent)}})
    parameters = {"decoder": "seq2seq", "banks": [], "seed": 0, "left_out": "breast_cancer", "unseen": ["wine"]}
    with pytest.raises(ConfigError, match=r"at least two different best networks, or .*, got 0 in 0 entries"):
        run_predict(whole_bank, parameters, tmp_path, silent)


def test_a_bank_goes_on_from_another_one(run, tmp_path):
    """The folder of a run whose bank was that of an earlier run has the entries of both, each once."""
    settings, trials, _, _, _ = run
    (own := tmp_path / "later" / "trials" / "bank-0").mkdir(parents=True)
    first = (trials / "bank-0" / "bank.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (own / "bank.jsonl").write_text(first.replace('"budget": ', '"budget": 1'), encoding="utf-8")
    later = Config.from_dict({**settings.to_dict(), "predict": {**SMALL, "bank": str(trials.parent)}})
    (tmp_path / "later" / "config.yaml").write_text(config_to_yaml(later), encoding="utf-8")
    assert len(read_bank([tmp_path / "later"]).entries) == len(read_bank([trials.parent]).entries) + 1
    # One that names itself is read once.
    itself = Config.from_dict({**settings.to_dict(), "predict": {**SMALL, "bank": str(tmp_path / "later")}})
    (tmp_path / "later" / "config.yaml").write_text(config_to_yaml(itself), encoding="utf-8")
    assert len(read_bank([tmp_path / "later"]).entries) == 1


def test_data_are_the_same_from_wherever_they_are_looked_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    here, there = DataConfig("csv", path="a.csv"), DataConfig("csv", path=str(tmp_path / "a.csv"), test_fraction=0.4)
    assert here != there and unsplit(here) == unsplit(there) != unsplit(DataConfig("csv", path="b.csv"))


def test_an_earlier_bank_alone_needs_no_sources(run):
    _, trials, _, _, _ = run
    validate(config(tasks=0, bank=str(trials.parent), own=False, sources=[]))


def test_the_command(tmp_path, monkeypatch):
    """It sets the plan, whatever the file says."""
    from nni_bayes_nas import cli
    from nni_bayes_nas.experiment import runner

    seen = []
    monkeypatch.setattr(runner, "run", lambda config, **rest: seen.append(config) or 0)
    path = tmp_path / "predict.yaml"
    path.write_text(json.dumps({"data": {"name": "wine"}}), encoding="utf-8")
    assert cli.main(["predict", str(path), "--output", str(tmp_path / "run")]) == 0
    assert seen[0].experiment.plan == "architecture_prediction" and seen[0].data.name == "wine"


def test_sources_have_names_of_their_own():
    sources = [{"name": MADE_UP, "args": {"kind": kind, "seed": seed}} for kind, seed in (("blobs", 0), ("blobs", 1))]
    # Other parts of the data themselves would hold their test objects.
    named = sources_of(config(sources=[*sources, {"name": "wine"}, {"name": "wine", "limit": 50}]))
    assert list(named) == ["wine", "synthetic-blobs", "synthetic-blobs-2"] and named["wine"] == DataConfig("wine")
    assert list(sources_of(config(sources=[{"name": "wine", "test_fraction": 0.4}], own=False))) == []
    assert list(sources_of(config(own=False))) == ["breast_cancer"]


def test_more_tasks_leave_the_first_ones_as_they_are():
    assert Parts(config()).tasks(3) == Parts(config()).tasks(9)[:3]


@pytest.mark.parametrize(
    ("predict", "match"),
    [
        ({"tasks": 0}, "`predict.tasks` must be at least 1 without predict.bank"),
        ({"tasks": 1, "factors": [1.0]}, "`predict.tasks` must give at least two searches"),
        (
            {"own": False, "sources": [{"name": "wine", "limit": 50}]},
            "`predict.tasks` must have data of classes to draw",
        ),
        ({"sources": [{"name": "digits", "limit": 12}], "own": False, "tasks": 9}, "needs feature 6?[0-9] and classes"),
        ({"sources": [{"name": "digit"}]}, "unknown data set `digit`"),
        ({"sources": [{"name": "diabetes", "task": "regression"}]}, "data `diabetes` are a regression"),
        ({"shares": [0.1, 0.01]}, "`predict.shares` must rise"),
        ({"factors": [0.0]}, "`predict.factors` must be positive"),
        ({"widths": [4, 2]}, "rising widths"),
        ({"dense_share": 0.01}, "`predict.dense_share` must leave at least 5 connections"),
        ({"kinds": []}, "`predict.kinds` must not be empty"),
        ({"held_out": 1.0}, r"`predict.held_out` must lie in \[0, 1\)"),
        ({"cells": 3}, "`predict.cells` must be 0 for data that are no images"),
        ({"methods": ["snipe"]}, r"predict.methods\[0\]` must be one of"),
        ({"factors": [0.1]}, "`predict.factors` must leave at least 5 connections, the smallest network's, got 1"),
        ({"top": 1, "others": 0}, "`predict.top` must be at least 2 with predict.others"),
        ({"dim": 30}, "`predict.dim` must be a multiple of 4"),
        ({"widths": [0, 2]}, "`predict.widths` must be at least 1"),
        ({"kinds": ["seq2seq", "seq2seq"]}, "`predict.kinds` must be distinct"),
        ({"sources": [{"name": MADE_UP, "args": {"n_features": 4097}}]}, "at most 4096 features, but .* have 4097"),
    ],
)
def test_settings_that_cannot_be(predict, match):
    from nni_bayes_nas.registry import check_names

    with pytest.raises(ConfigError, match=match):
        made = config(**predict)
        check_names(made)
        validate(made)


def test_regression_is_refused():
    values = {"data": {"name": "diabetes", "task": "regression"}, "experiment": {"plan": "architecture_prediction"}}
    with pytest.raises(ConfigError, match="`predict` is for classes"):
        validate(Config.from_dict(values))


@pytest.mark.nni
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_by_a_real_manager(pipeline):
    experiment = {"plan": "architecture_prediction", "device": "cpu", "concurrency": 2, "threads": 1}
    run = pipeline({"data": {"name": "wine"}, "predict": SMALL, "experiment": experiment})
    out = run.run()
    found = run.summary["prediction"]
    assert [row["budget"] for row in found["verified"]] == [13, 26] and "report.html" in out
    page = (run.output / "report.html").read_text(encoding="utf-8")
    assert "Predicted networks" in page and "Parts that were kept out of the fit" in page
    assert "Learning curves" not in page
