"""The posterior in words, and what `evaluate` found: text against known answers."""

import json
import math

import pytest
import torch

from nni_bayes_nas.bayes import law
from nni_bayes_nas.bayes.posterior import ArchitecturePosterior
from nni_bayes_nas.report import posterior, robustness, write_report
from nni_bayes_nas.report.posterior_map import posterior_maps
from nni_bayes_nas.report.read import read_run

UNITS = [law.Choice("a", ("skip", "conv")), law.Choice("b", ("skip", "conv", "pool"))]
PROBS = [torch.tensor([[0.05, 0.95]]), torch.tensor([[0.5, 0.3, 0.2]])]


@pytest.fixture
def folder(run_folder):
    made = run_folder(with_metrics=False, n_lambdas=2, n_random=1)
    trial = made / "trials" / "search-s0"
    trial.mkdir(parents=True, exist_ok=True)
    q = ArchitecturePosterior(UNITS, PROBS)
    (trial / "posterior.json").write_text(json.dumps(q.to_dict()), encoding="utf-8")
    return made


def test_what_is_decided_and_what_is_probable(folder):
    (said,) = posterior.posteriors(read_run(folder))
    assert said.trial == "search-s0"
    assert said.choices == [
        ["a", "conv", "95.0 %", "skip", "5.0 %", "decided"],
        ["b", "skip", "50.0 %", "conv", "30.0 %", "open"],
    ]
    entropy = -sum(p * math.log(p) for probs in PROBS for p in probs[0].tolist())
    assert said.sentences[0].startswith(f"Entropy {entropy:.2f} of at most {math.log(6):.2f} nats: as uncertain as 3 ")
    assert "of 6 that the space has" in said.sentences[0]
    assert said.sentences[1].endswith("1 of 2 choices.")
    assert said.sentences[2] == "The most probable architecture has 47.5 %; what is read off the mean has 47.5 %."
    assert said.top[:2] == [["47.5 %", "–"], ["28.5 %", "b: conv"]] and len(said.top) == 5
    page = write_report([folder])[0].read_text(encoding="utf-8")
    assert "What the search is sure of" in page and "Under attack" not in page


def test_the_posterior_is_drawn(folder):
    """A square for every option, as dark as it is probable; choices of equal options in one drawing."""
    (said,) = posterior.posteriors(read_run(folder))
    assert len(said.drawings) == 2
    first, second = said.drawings
    for drawing, texts in ((first, ("skip", "conv", ">95<", ">5<")), (second, ("pool", ">50<", ">30<", ">20<"))):
        assert all(text in drawing for text in texts), texts
    assert "opacity: 0.95" in first and "pool" not in first
    page = write_report([folder])[0].read_text(encoding="utf-8")
    assert page.count('class="plot map"') == 2
    many = {f"edge {i}": {"a": 0.5, "b": 0.5} for i in range(61)}
    assert posterior_maps("s", many) == [] and len(posterior_maps("s", {"x": {"a": 0.0, "b": 1.0}})) == 1


def test_a_posterior_at_every_lambda(folder):
    path = folder / "trials" / "search-s0" / "posterior.json"
    rows = []
    for i in range(5):
        probs = [PROBS[0], torch.tensor([[0.55 + 0.1 * i, 0.27 - 0.06 * i, 0.18 - 0.04 * i]])]
        rows.append({"lambda": 10.0**-i, **ArchitecturePosterior(UNITS, probs).to_dict()})
    path.write_text(json.dumps({**rows[0], "by_lambda": rows}), encoding="utf-8")
    said = posterior.posteriors(read_run(folder))
    assert [one.trial for one in said] == [f"search-s0, λ = {x}" for x in ("1", "0.01", "0.0001")]
    assert [one.choices[1][-1] for one in said] == ["open", "open", "decided"]


def test_what_short_trainings_added(folder, edit_summary):
    account = {
        "probes": [{"candidate": 3, "val_loss": 0.5}, {"candidate": 4, "val_loss": 0.6}],
        "finals": [{"candidate": 3, "val_loss": 0.25, "epochs": 4}, {"candidate": 3, "val_loss": 0.2, "epochs": 8}],
        "posterior": [
            {"candidate": 3, "choices": {"a": "conv"}, "mean": 1.0, "sd": 0.5, "probability_best": 0.75},
            {"candidate": 9, "choices": {"a": "skip"}, "mean": -1.0, "sd": 0.5, "probability_best": 0.25},
        ],
    }
    edit_summary(folder, lambda summary: summary.update(refinement={"s0": account}))
    ((search, sentence, rows),) = posterior.refinements(read_run(folder))
    assert search == "s0" and sentence.startswith("2 short trainings and 2 longer ones have updated")
    assert rows == [
        ["75.0 %", "1.00 ± 0.50", "0.5000", "0.2000 (8 epochs)", "a: conv"],
        ["25.0 %", "−1.00 ± 0.50", "–", "–", "a: skip"],
    ]
    assert "Refined by short trainings: search s0" in write_report([folder])[0].read_text(encoding="utf-8")


def test_an_edge_that_is_hardly_kept_is_decided():
    node = law.Node("cell", 2, ("skip", "conv"), 1)
    q = ArchitecturePosterior([node], [torch.tensor([[0.5, 0.49, 0.01], [0.005, 0.005, 0.99]])])
    rows = [posterior._choice(label, options) for label, options in q.inclusion().items()]
    assert [row[-1] for row in rows] == ["open", "decided"]


def test_a_run_without_a_posterior_has_no_such_page(run_folder):
    made = run_folder(with_metrics=False)
    page = write_report([made])[0].read_text(encoding="utf-8")
    assert "What the search is sure of" not in page and 'id="robustness"' not in page


def test_the_smallest_network_that_is_as_good(folder, edit_summary):
    def change(summary):
        sizes = (1000, 100, 10)
        for row, size, values in zip(
            summary["architectures"], sizes, ([0.90, 0.92, 0.94], [0.91, 0.91, 0.911], [0.5, 0.5, 0.5]), strict=True
        ):
            row["params"] = size
            row["retrain"] = [{"seed": i, "val_accuracy": v, "test_accuracy": 0.1} for i, v in enumerate(values)]

    edit_summary(folder, change)
    said = posterior.smallest_good(read_run(folder))
    # .92, standard error .02 / sqrt(3) = .0115: .9103 is within it, .5 is not.
    ids = [row["id"] for row in read_run(folder).architectures]
    assert f"{ids[1]}, 100 instead of 1,000 parameters" in said and ids[0] in said
    edit_summary(folder, lambda summary: summary["architectures"][1].update(retrain=[]))
    assert posterior.smallest_good(read_run(folder)).startswith("No smaller network")
    edit_summary(folder, lambda summary: [row.update(retrain=row["retrain"][:1]) for row in summary["architectures"]])
    assert posterior.smallest_good(read_run(folder)) == ""


EVALUATION = {
    "settings": {"epsilons": [0.1, 0.2], "damages": [0.5], "objects": 10, "steps": 20, "restarts": 2, "queries": 100},
    "test_objects": 40,
    "networks": [
        {
            "architecture": "s0-lam-0.0001",
            "seed": seed,
            "scores": {"nll": 0.1 + seed, "ece": 0.01},
            "clean": 0.9,
            "attacked": {"fgsm": [0.5, 0.25], "pgd": [0.4, 0.2], "noise": [0.8, 0.7]},
            "masked": bool(seed),
            "damaged": [0.3],
        }
        for seed in (0, 1)
    ],
    "ensembles": [
        {
            "name": "posterior of s0, weighted",
            "networks": 6,
            "seeds": [0, 1],
            "scores": {"accuracy": 0.91, "nll": 0.2, "ece": 0.03, "brier": 0.1},
            "difference": {"mean": -0.01, "low": -0.02, "high": 0.005},
        }
    ],
}


def test_what_was_evaluated(folder):
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    run = read_run(folder)
    columns, rows = robustness.attack_table(run)
    assert columns[3:] == [
        "Clean",
        *(f"{name} {epsilon}" for name in ("FGSM", "PGD", "noise") for epsilon in (0.1, 0.2)),
        "50 % of edges missing",
    ]
    assert rows[0][:5] == ["s0-lam-0.0001", "0.600", "0.010", "90.0 ± 0.0 %", "50.0 ± 0.0 %"]
    (row,) = robustness.score_rows(run)
    assert row[:6] == ["posterior of s0, weighted (6 networks)", "2", "91.00 %", "0.2000", "0.0300", "0.1000"]
    assert row[6] == "−0.0100 (−0.0200 … +0.0050)"
    notes = robustness.notes(run)
    assert "10 of 40 test objects" in notes[0] and "s0-lam-0.0001" in notes[1]
    page = write_report([folder])[0].read_text(encoding="utf-8")
    assert "Accuracy under attack" in page and "−0.0100 (−0.0200 … +0.0050)" in page
    assert "the largest change of a pixel, of 1 for all," in page
    (folder / "evaluation.json").write_text(json.dumps({**EVALUATION, "images": False}), encoding="utf-8")
    of_vectors = write_report([folder])[0].read_text(encoding="utf-8")
    assert "the largest change of a feature, in its sd," in of_vectors and "a pixel" not in of_vectors
