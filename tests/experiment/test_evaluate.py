"""The command `evaluate`: attacks, damage and ensembles of the networks of a run folder."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nni.nas.hub.pytorch import DARTS
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, Repeat
from torch import nn
from torch.utils.data import TensorDataset

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.cli import main
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.damage import damaged, edges
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.ensembles import ensembles
from nni_bayes_nas.experiment.evaluate import Settings, _masked, box_of, evaluate
from nni_bayes_nas.experiment.record import read_json, write_json
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.dense import DenseSpace
from nni_bayes_nas.search_spaces.nasbench201 import NasBench201Space, from_arch_string

SMALL = {
    "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
    "data": {"limit": 200},
    "search": {"random": 0},
    "retrain": {"epochs": 4, "batch_size": 8, "learning_rate": 0.1, "repeats": 2},
    "experiment": {"device": "cpu"},
    "seed": 3,
}
DRAWN = {
    "mean": ({"layer0": "conv_3x3", "layer1": "conv_1x1"}, 0.6),
    "sample": ({"layer0": "conv_1x1", "layer1": "conv_3x3"}, 0.2),
}
ROWS = [{"lambda": None, "origin": o, "choices": c, "log_prob": math.log(p)} for o, (c, p) in DRAWN.items()]
QUICK = ["--objects", "40", "--epsilons", "0.05", "0.3", "--damages", "0", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_run):
    return make_run(tmp_path_factory.mktemp("evaluated") / "run", SMALL, ROWS)


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


# -- damage ------------------------------------------------------------------------------------------------------------


def test_the_edges_of_a_cell_and_of_layers():
    def cells():
        return CellSpace(width=4, n_cells=2, n_nodes=2)

    sample = {k: v.values[:1] if getattr(v, "n_chosen", 0) else v.values[1] for k, v in cells().simplify().items()}
    network = Architecture(sample).build(cells())
    # Two cells, two nodes, two edges each.
    assert len(edges(cells(), network)) == 8

    def benchmark():
        return NasBench201Space(width=4, cells_per_stage=2)

    arch = from_arch_string("|none~0|+|nor_conv_3x3~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|")
    # Six cells of six edges.
    assert len(edges(benchmark(), Architecture(arch).build(benchmark()))) == 36
    assert edges(nn.Linear(2, 2), nn.Linear(2, 2)) == []


def test_edges_inside_of_repeats():
    class Repeated(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layers = Repeat(self.block, (1, 3), label="depth")
            self.fixed = Repeat(lambda i: nn.Sequential(Repeat(self.inner(i), (1, 2), label=f"inner{i}")), 2)

        def block(self, i):
            return nn.Sequential(LayerChoice([nn.Linear(3, 3), nn.Identity()], label=f"layer{i}"), nn.ReLU())

        def inner(self, i):
            return lambda j: LayerChoice([nn.Linear(3, 3), nn.Identity()], label=f"inner{i}_{j}")

        def forward(self, x):
            return self.fixed(self.layers(x))

    sample = {label: spec.values[0] for label, spec in Repeated().simplify().items()} | {"depth": 2, "inner0": 2}
    network = Architecture(sample).build(Repeated())
    assert edges(Repeated(), network) == ["layers.0.0", "layers.1.0", "fixed.0.0.0", "fixed.0.0.1", "fixed.1.0.0"]


def test_damage_takes_edges_away_and_gives_them_back():
    def chain():
        return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))

    torch.manual_seed(0)
    network, x = chain(), torch.randn(5, 3)
    before = network(x)
    with damaged(network, ["0"], 1.0, torch.Generator()):
        assert torch.equal(network(x), network[1].bias.expand(5, 2))
    with damaged(network, ["0", "1"], 0.0, torch.Generator()):
        assert torch.equal(network(x), before)
    assert torch.equal(network(x), before)
    with damaged(network, ["1"], 0.3, torch.Generator().manual_seed(0)):
        gone = sum(bool((network(x) == 0).all()) for _ in range(1000))
    assert abs(gone - 300) < 4 * math.sqrt(1000 * 0.3 * 0.7)
    wrong = damaged(network, [], 1.5, torch.Generator())
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\], got 1\.5"), wrong:
        pass


# -- what images may be ------------------------------------------------------------------------------------------------


def test_pixels_stay_between_0_and_1():
    data = load_data(Config.from_dict(SMALL).data)
    box = box_of(data)
    for end, value in ((box.low, 0.0), (box.high, 1.0)):
        torch.testing.assert_close(end * data.sd + data.mean, torch.full_like(data.mean, value))
    torch.testing.assert_close(box.scale * data.sd, torch.ones_like(data.sd))


@pytest.mark.parametrize("shape", [(50, 3), (50, 2, 4, 4)])
def test_other_data_stay_in_their_range(shape):
    x = 7 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mean = sd = torch.ones(1, *shape[1:2], *(1 for _ in shape[2:]))
    data = SimpleNamespace(train=TensorDataset(x, torch.zeros(50)), mean=mean, sd=sd)
    box = box_of(data)
    assert bool((x >= box.low - 1e-5).all()) and bool((x <= box.high + 1e-5).all())
    assert bool((x - 1 < box.low).any()) and bool((x + 1 > box.high).any())


# -- ensembles ---------------------------------------------------------------------------------------------------------


def test_ensembles_by_hand():
    y = torch.tensor([0, 1])
    sure, unsure = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()

    def row(name, origin, p):
        return {"id": name, "search": "s0", "origin": origin, "log_prob": math.log(p)}

    a, b = row("a", "mean", 0.3), row("b", "sample", 0.1)
    other = {"id": "c", "search": "s0", "origin": "random", "log_prob": None}
    rows = [
        (r, {"name": f"{r['id']}{seed}", "seed": seed, "val_accuracy": score})
        for r, score in ((a, 0.8), (b, 0.9), (other, 0.7))
        for seed in (0, 1)
    ]
    logs = {f"{name}{seed}": p for name, p in (("a", sure), ("b", unsure), ("c", unsure)) for seed in (0, 1)}
    found = {one["name"]: one for one in ensembles(rows, logs, y, "val_accuracy")}
    assert found["best network by validation"]["scores"]["nll"] == pytest.approx(math.log(2))
    assert found["its repeats together"]["networks"] == 2
    weighted = found["posterior of s0, weighted"]
    mixed = [0.75 * 0.9 + 0.25 * 0.5, 0.75 * 0.8 + 0.25 * 0.5]
    nll = -sum(map(math.log, mixed)) / 2
    assert weighted["scores"]["nll"] == pytest.approx(nll) and weighted["seeds"] == [0, 1]
    # Both seeds are equal: the interval is a point.
    assert weighted["difference"] == pytest.approx({k: nll - math.log(2) for k in ("mean", "low", "high")})
    assert found["posterior of s0, equal weights"]["scores"]["nll"] < math.log(2)
    # "b" is the best by validation, and its seeds are equal.
    same = found["2 seeds of the best member of s0"]
    assert same["networks"] == 2 and same["scores"]["nll"] == pytest.approx(math.log(2))
    assert same["difference"] == pytest.approx(dict.fromkeys(("mean", "low", "high"), 0.0), abs=1e-6)
    # A seed that one member lacks says nothing; one seed gives no two of an architecture.
    some = [pair for pair in rows if (pair[0]["id"], pair[1]["seed"]) != ("b", 1)]
    found = {one["name"]: one for one in ensembles(some, logs, y, "val_accuracy")}
    assert found["posterior of s0, weighted"]["seeds"] == [0]
    assert found["posterior of s0, weighted"]["difference"] is None
    assert "2 seeds of the best member of s0" not in found


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_run_is_evaluated(run, capsys):
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert str(run / "evaluation.json") in capsys.readouterr().out
    found = read_json(run / "evaluation.json")
    assert len(found["networks"]) == 4 and found["test_objects"] == len(load_data(Config.from_dict(SMALL).data).test)
    by_trial = {row["name"]: row for a in read_json(run / "summary.json")["architectures"] for row in a["retrain"]}
    for row in found["networks"]:
        assert row["scores"]["accuracy"] == pytest.approx(by_trial[row["trial"]]["test_accuracy"], abs=1e-6)
        attacked = row["attacked"]
        assert all(p <= f for p, f in zip(attacked["pgd"], attacked["fgsm"], strict=True))
        assert attacked["pgd"][1] <= attacked["pgd"][0] <= row["clean"]
        # Nothing missing is clean; everything missing leaves a bias.
        assert row["damaged"][0] == row["clean"] and row["damaged"][1] < 0.4
    assert [one["name"] for one in found["ensembles"]][2:] == [
        "posterior of s0, weighted",
        "posterior of s0, equal weights",
        "best member of s0 by validation",
        "2 seeds of the best member of s0",
    ]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Under attack, damaged, and how sure" in page and "posterior of s0, weighted (2 networks)" in page
    first = (run / "evaluation.json").read_text(encoding="utf-8")
    assert main(["evaluate", str(run), *QUICK]) == 0
    assert (run / "evaluation.json").read_text(encoding="utf-8") == first


def test_one_architecture_alone(run):
    name = read_json(run / "summary.json")["architectures"][1]["id"]
    evaluate(run, Settings(epsilons=(), damages=(), objects=8), [name])
    found = read_json(run / "evaluation.json")
    assert {row["architecture"] for row in found["networks"]} == {name}
    assert all(set(row["attacked"]) == {"fgsm", "pgd", "square", "noise"} for row in found["networks"])
    assert [one["name"] for one in found["ensembles"]] == ["best network by validation", "its repeats together"]


def test_fewer_attacks_are_the_same_attacks(run):
    name = read_json(run / "summary.json")["architectures"][0]["id"]
    some = ["evaluate", str(run), *QUICK, "--architecture", name]
    assert main(some) == 0
    every = read_json(run / "evaluation.json")["networks"][0]
    assert main([*some, "--attacks", "square", "fgsm"]) == 0
    fewer = read_json(run / "evaluation.json")["networks"][0]
    assert fewer["attacked"] == {kind: every["attacked"][kind] for kind in ("fgsm", "square")}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The black box sees outputs alone" in page
    assert "such steps with" not in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epsilons", "-0.1"], "`--epsilons` must be at least 0, got -0.1"),
        (["--attacks", "fgsn"], "`--attacks` must be of fgsm, pgd, square, noise, got fgsn"),
        (["--damages", "1.2"], "`--damages` must be from 0 to 1, got 1.2"),
        (["--objects", "0"], "`--objects` must be at least 1, got 0"),
        (["--architecture", "s0-men"], "has no architecture `s0-men`"),
    ],
)
def test_wrong_options(options, message, run, capsys):
    assert main(["evaluate", str(run), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "evaluation.json").exists()


def test_wrong_folders(run, tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    path = next(run.glob("trials/retrain-*/data.json"))
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "mean": [[[[5.0]]]]})
    first = read_json(run / "summary.json")["architectures"][0]
    rest = [one for one in run.glob("trials/retrain-*/data.json") if one != path]
    for other in rest:
        other.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["evaluate", str(run), "--architecture", first["id"]]) == 2
    assert "must be those of the training" in capsys.readouterr().err


def test_a_regression_is_refused(tmp_path, capsys, make_run):
    values = {
        **SMALL,
        "space": {"name": "dense", "args": {"width": 4}},
        "data": {"name": "diabetes", "task": "regression"},
        "retrain": {"epochs": 1},
    }
    sample = {label: unit.values[0] for label, unit in DenseSpace(width=4).simplify().items()}
    row = {"lambda": None, "origin": "mean", "choices": sample, "log_prob": -1.0}
    folder = make_run(tmp_path / "run", values, [row])
    assert main(["evaluate", str(folder)]) == 2
    assert "must be of classes" in capsys.readouterr().err


@pytest.mark.slow
def test_edges_of_the_hub():
    def space():
        return DARTS(width=4, num_cells=3, dataset="cifar")

    sample = {k: v.values[:1] if getattr(v, "n_chosen", 0) else v.values[1] for k, v in space().simplify().items()}
    network = space().freeze(sample)
    # Three cells, four nodes, two edges each.
    assert len(edges(space(), network)) == 24


def test_gradients_are_masked_where_the_black_box_is_clearly_stronger():
    """Of 256 objects two standard errors of .9 are .0375."""
    assert _masked({"pgd": [0.9, 0.5], "square": [0.86, 0.5]}, 256)
    assert not _masked({"pgd": [0.9], "square": [0.87]}, 256) and not _masked({"pgd": [0.5], "square": [0.9]}, 256)
    assert _masked({"pgd": [0.9, 0.5], "square": [0.9, 0.4]}, 256)
    assert not _masked({"pgd": [0.9]}, 256) and not _masked({"pgd": [0.0], "square": [0.0]}, 256)
