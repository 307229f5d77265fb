"""The plan of compressions: its trials, what they give, what they refuse; once by a real manager."""

import json

import pytest
import torch

from nni_bayes_nas.compression import kept
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import pruned
from nni_bayes_nas.experiment.build import validate
from nni_bayes_nas.experiment.compress import build_model, build_network, run_compress
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.compression import Compression

SMALL = {
    "network_args": {"hidden": [16]},
    "epochs": 4,
    "batch_size": 64,
    "lambdas": [0.1, 3.0],
    "fractions": [0.0, 0.9],
    "draws": 3,
}


def config(**compress):
    experiment = {"plan": "compression", "device": "cpu", "threads": 1}
    return Config.from_dict({"experiment": experiment, "compress": {**SMALL, **compress}})


def test_a_trial_for_every_kind_lambda_and_repeat():
    ledger = Ledger(Compression(config(kinds=["linear", "mlp"], direct=[0.1, 1], repeats=2)), retries=0)
    specs = ledger.take()
    assert [spec.name for spec in specs] == [
        *(f"compress-{kind}-seed{seed}" for kind in ("linear", "mlp") for seed in (0, 1)),
        *(f"compress-direct-lam{lam}-seed{seed}" for lam in ("0.1", "1") for seed in (0, 1)),
    ]
    assert {spec.kind for spec in specs} == {"compress"}
    assert specs[-1].parameters == {"hypernet": "constant", "lambda": 1.0, "prior": "ard", "seed": 1}
    near = Compression(config(kinds=[], direct=[1, 1.0000001])).trials({}, set())
    assert [spec.name for spec in near] == [f"compress-direct-lam{lam}-seed0" for lam in ("1.0", "1.0000001")]
    several = Compression(config(priors=["ard", "fixed"])).trials({}, set())
    assert [spec.name for spec in several] == [f"compress-piecewise_linear-{p}-seed0" for p in ("ard", "fixed")]
    for spec in specs[1:]:
        ledger.died(spec.name, "killed")
    assert ledger.verdict() is None and not ledger.finished
    ledger.done(specs[0].name, {"compression": [{"lambda": 0.1}], "training_seconds": 1.0, "seconds": 2.0}, "job")
    (row,) = ledger.summary()["compression"]
    assert ledger.finished and (row["hypernet"], row["trial"], row["rows"]) == ("linear", "job", [{"lambda": 0.1}])
    lost = Ledger(Compression(config()), retries=0)
    lost.died(lost.take()[0].name, "out of memory")
    assert "every compression failed (compress-piecewise_linear-seed0: out of memory)" in str(lost.verdict())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress-x")
    seen = []
    parameters = {"trial": folder.name, "hypernet": "piecewise_linear", "lambda": None, "seed": 0}
    found = run_compress(config(finetune_epochs=1), parameters, folder, seen.append)
    return found, folder, seen


def test_what_a_trial_gives(result):
    found, folder, seen = result
    json.dumps(found)
    assert [row["lambda"] for row in found["compression"]] == [0.1, 3.0] and len(seen) == 4
    for row in found["compression"]:
        assert row["objective"] == pytest.approx(row["expected_log_likelihood"] - row["lambda"] * row["kl"], abs=0.01)
        assert {"accuracy", "nll", "ece", "brier"} == set(row["predictive"]) and row["test_accuracy"] > 0.3
        whole, cut = row["curve"]
        assert (whole["kept"], whole["compression"]) == (64 * 16 + 160, 1.0) and cut["kept"] == 118
        assert whole["test_accuracy"] == pytest.approx(row["test_accuracy"])
        assert 0 <= cut["finetuned"]["val_accuracy"] <= 1 and row["z_above_1"] <= whole["kept"]
    assert found["default"] == max(row["val_accuracy"] for row in found["compression"])
    assert [row["epoch"] for row in seen] == [0, 1, 2, 3] and all(0 <= row["default"] <= 1 for row in seen)
    assert found["training_seconds"] <= found["seconds"]
    assert {"model.pt", "data.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("size", "of_a_step"), [(None, 64), (16, 16)])
def test_batches_of_what_is_pruned(tmp_path, monkeypatch, size, of_a_step):
    """Of the training, unless they are given."""
    seen = []
    monkeypatch.setattr(pruned, "finetune", lambda network, loader, *rest: seen.append(len(next(iter(loader))[1])))
    parameters = {"trial": "x", "hypernet": "constant", "lambda": 1.0, "seed": 0}
    settings = config(finetune_epochs=1, finetune_batch_size=size, epochs=1, fractions=[0.9], kinds=[], direct=[1.0])
    run_compress(settings, parameters, tmp_path, lambda row: None)
    assert seen == [of_a_step]


def test_validation_data_prefer_a_rate(tmp_path):
    """Of two; a rate at which it diverges is none, and what is kept is what was trained at the one preferred."""
    parameters = {"trial": "x", "hypernet": "constant", "lambda": 1.0, "seed": 0}

    def tuned(name, rates):
        (tmp_path / name).mkdir()
        settings = config(finetune_epochs=2, finetune_learning_rate=rates, epochs=2, kinds=[], direct=[1.0])
        return run_compress(settings, parameters, tmp_path / name, lambda row: None)["compression"][0]["curve"]

    small, large, both = tuned("small", 1e-6), tuned("large", 0.03), tuned("both", [1e-6, 0.03])
    for one, other, found in zip(small, large, both, strict=True):
        assert found["finetuned"] == max(one, other, key=lambda point: point["finetuned"]["val_accuracy"])["finetuned"]
    assert large[1]["finetuned"]["val_accuracy"] > small[1]["finetuned"]["val_accuracy"]
    for name, rates in (("turned", [0.03, 1e-6]), ("diverging", [1e30, 0.03]), ("diverging-last", [0.03, 1e30])):
        assert [point["finetuned"] for point in tuned(name, rates)] == [point["finetuned"] for point in large], name


def test_the_hypernetwork_is_kept(result):
    """Any lambda can be read off later."""
    found, folder, _ = result
    settings = config(finetune_epochs=1)
    data = load_data(settings.data)
    model = build_model(settings, data, {"hypernet": "piecewise_linear", "lambda": None, "seed": 5})
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    x, y = data.val[:]
    with torch.no_grad():
        accuracy = float((model.eval()(x, 3.0).argmax(-1) == y).double().mean())
    assert accuracy == pytest.approx(found["compression"][1]["val_accuracy"])
    assert kept(model.materialize(0.5)) > 1000


def test_it_goes_on_from_a_checkpoint(tmp_path):
    parameters = {"trial": "x", "hypernet": "linear", "lambda": None, "seed": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    whole = run_compress(config(), parameters, one, lambda row: None)

    def interrupt(row):
        if row["epoch"] == 1:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run_compress(config(), parameters, two, interrupt)
    again = run_compress(config(), parameters, two, lambda row: None)
    assert again["compression"] == whole["compression"]


@pytest.mark.parametrize("prior", ["ard", "scaled"])
def test_what_is_read_off_is_trained_on_by_its_bound(tmp_path, prior):
    """J grows, by enough epochs of a network that had few; the networks of both curves are kept."""
    parameters = {"trial": "x", "hypernet": "linear", "lambda": None, "prior": prior, "seed": 0}
    found = run_compress(config(priors=[prior], posterior_finetune_epochs=8), parameters, tmp_path, lambda row: None)
    for row in found["compression"]:
        further, price = row["posterior_finetuned"], 1.0 if prior == "scaled" else row["lambda"]
        fit = further["expected_log_likelihood"]
        assert further["objective"] == pytest.approx(fit - price * further["kl"], abs=0.01)
        assert further["objective"] > row["objective"] and len(further["curve"]) == 2
    files = {path.name for path in (tmp_path / "networks").iterdir()}
    assert {"lambda0.1-fraction0.9.pt", "lambda0.1-trained-on-fraction0.9.pt"} <= files


def test_whole_neurons_leave_a_smaller_network(tmp_path):
    parameters = {"trial": "x", "hypernet": "constant", "lambda": 1.0, "seed": 0}
    settings = config(kinds=[], direct=[1.0], structured=True, fractions=[0.0, 0.5, 0.9])
    found = run_compress(settings, parameters, tmp_path, lambda row: None)
    sizes = [point["params"] for point in found["compression"][0]["curve"]]
    whole = 64 * 16 + 16 + 160 + 10
    assert sizes[0] <= whole and sizes[1] == pytest.approx(whole / 2, rel=0.1) and sizes[2] < whole / 7


@pytest.mark.parametrize("weights", ["variational", "point"])
def test_one_lambda(tmp_path, weights):
    parameters = {"trial": "x", "hypernet": "constant", "lambda": 0.5, "seed": 0}
    priors = {"priors": ["fixed"]} if weights == "point" else {}
    given = config(weights=weights, kinds=[], direct=[0.5], **priors)
    found = run_compress(given, parameters, tmp_path, lambda row: None)
    (row,) = found["compression"]
    assert row["lambda"] == 0.5 and ("predictive" in row) == (weights == "variational")


@pytest.mark.parametrize("inputs", ["raw", "standardized"])
def test_modules_that_stay_whole(inputs):
    settings = config(inputs=inputs)
    data = load_data(settings.data)
    last = list(dict(build_network(settings, data, 0).named_modules()))[-1]
    model = build_model(
        config(inputs=inputs, skip=[last.removeprefix("1.") if inputs == "raw" else last]),
        data,
        {"hypernet": "linear", "seed": 0},
    )
    assert len(model.prunable) == 1 and f"{last}.weight" not in model.prunable


def test_objects_as_they_are_stored():
    """Pixels that never vary are zero to the network, so that weights behind them say nothing."""
    settings = config()
    data = load_data(settings.data)
    network = build_network(settings, data, 0)
    raw = network[0](data.train[:][0])
    assert float(raw.min()) == pytest.approx(0.0, abs=1e-6) and float(raw.max()) == pytest.approx(1.0)
    other = build_network(config(inputs="standardized"), data, 0)
    assert not torch.allclose(other(data.val[:4][0]), network(data.val[:4][0]))


def test_networks_by_name_and_from_a_search(tmp_path):
    architecture = tmp_path / "architecture.json"
    values = {
        "space": {"name": "chain", "args": {"width": 4, "depth": 2}},
        "experiment": {"plan": "compression", "device": "cpu"},
    }
    whole = Config.from_dict(values)
    data = load_data(whole.data)
    from nni_bayes_nas.architecture import Architecture
    from nni_bayes_nas.experiment.build import build_space

    choices = {}
    build_space(whole, data, 0).random(memo=choices)
    architecture.write_text(Architecture(choices).to_json(), encoding="utf-8")
    compress = {**SMALL, "network": "space", "network_args": {}, "architecture": str(architecture)}
    validate(Config.from_dict({**values, "compress": compress}))
    validate(config(network="cnn", network_args={"channels": [4], "hidden": 8}))
    architecture.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"architecture"):
        validate(Config.from_dict({**values, "compress": compress}))


@pytest.mark.parametrize(
    ("compress", "match"),
    [
        ({"network": "lenet"}, "unknown network `lenet`"),
        ({"network_args": {"units": [3]}}, "unknown key `compress.network_args.units`"),
        ({"network_args": {"hidden": [0]}}, r"hidden must be at least 1 each, got \[0\]"),
        ({"network": "cnn", "network_args": {"channels": [4, 4, 4, 4]}}, "needs images of at least 16 pixels"),
        ({"batch_size": 4000}, "compress.batch_size` must be at most the"),
        ({"finetune_batch_size": 4000, "finetune_epochs": 1}, "compress.finetune_batch_size` must be at most the"),
        ({"finetune_batch_size": 0}, "compress.finetune_batch_size` must be at least 1"),
        (
            {"finetune_batch_size": 8, "finetune_epochs": 0},
            "finetune_batch_size` must be left out without compress.fine",
        ),
        (
            {"finetune_learning_rate": [0.1, 0.2]},
            "finetune_learning_rate` must be left out without compress.finetune_epo",
        ),
        ({"lambda_range": [0.0, 1.0], "lambdas": [0.5]}, "0 < low < high"),
        ({"knots": 1}, "knots must be at least 2"),
        ({"fractions": [1.0]}, r"compress.fractions` must be shares that are left out, in \[0, 1\), got 1"),
        ({"lambdas": [5.0]}, "compress.lambdas` must lie in compress.lambda_range, 0.1 to 3, got 5"),
        ({"kinds": [], "direct": []}, "compress.kinds` must name a hypernetwork"),
        ({"lambdas": []}, "compress.lambdas` must name what is read off"),
        ({"lambdas": [0.1, 0.1]}, "compress.lambdas` must be distinct"),
        ({"finetune_learning_rate": 0.0}, "compress.finetune_learning_rate` must be positive"),
        (
            {"finetune_learning_rate": [0.1, 0.1]},
            r"finetune_learning_rate` must be a rate, or distinct ones, got \[0.1",
        ),
        ({"finetune_learning_rate": []}, r"finetune_learning_rate` must be a rate, or distinct ones, got \[\]"),
        ({"divide_batch": True, "lambdas_per_step": 65}, "compress.lambdas_per_step` must leave an object"),
        ({"direct": [1.0, 0.0], "priors": ["ard", "scaled"]}, "lambda must be above 0 with the prior 'scaled'"),
        ({"direct": [-1.0]}, "compress.direct` must not be negative"),
        ({"architecture": "x.json"}, "compress.architecture` must be an architecture.json for the network `space`"),
        ({"priors": ["laplace"]}, r"compress.priors\[0\]` must be one of"),
        ({"priors": []}, "compress.priors` must name a prior"),
        ({"posterior_finetune_epochs": 0}, "compress.posterior_finetune_epochs` must be at least 1"),
        (
            {"weights": "point", "priors": ["fixed"], "posterior_finetune_epochs": 1},
            "compress.posterior_finetune_epochs` must be left out where compress.weights is point",
        ),
        ({"epochs": 0}, "compress.epochs` must be at least 1"),
        ({"weights": "point"}, r"compress.priors` must be \[fixed\], .* for weights that are points, got \['ard'\]"),
        ({"fractions": []}, "compress.fractions` must name a share"),
        ({"shared_until": 1.0}, "compress.shared_until` must be below 1"),
        ({"gradient_clip": 1.0, "gradient_clip_value": 1.0}, "compress.gradient_clip_value` must be null beside"),
        ({"gradient_clip_value": 0.0}, "compress.gradient_clip_value` must be positive"),
        ({"skip": ["9"]}, r"`compress.skip` must name modules of the network, known: 0, 1, 2, 3$"),
        ({"skip": ["1"], "structured": True}, "compress.structured` must have a layer before the last one"),
        (
            {"kinds": ["linear"], "knots": 3},
            r"compress.knots` must be left out of kinds that have none, \['linear'\], got 3",
        ),
        ({"hidden": 3}, r"compress.hidden` must be left out of kinds that have none"),
        ({"prior_sd": 0.1}, r"compress.prior_sd` is of the priors fixed and scaled, got 0.1 with priors \['ard'\]"),
        (
            {"kinds": [], "direct": [1.0], "lambdas_per_step": 2},
            "compress.lambdas_per_step` is of hypernetworks, got 2",
        ),
        ({"skip": ["3"], "weights": "point", "priors": ["fixed"]}, "compress.skip` must be left out for weights that"),
    ],
)
def test_settings_that_cannot_be(compress, match):
    with pytest.raises(ConfigError, match=match):
        validate(config(**compress))


OWN = """
from torch import nn

def narrow(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(63, num_classes))

def bent(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(9, num_classes))

def no_classes(shape):
    return nn.Linear(64, 10)

def nothing(shape, num_classes):
    nn.Linear(64, 10)

def several(shape, num_classes):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, num_classes)

        def forward(self, x):
            return self.layer(x.flatten(1)), x

    return Several()

def frozen(shape, num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, num_classes))
    net[1].requires_grad_(False)
    return net

class Forked(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other, self.last = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.one(x.flatten(1)) + self.other(x.flatten(1)))

def forked(shape, num_classes):
    return Forked()

def normalized(shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("narrow", {}, r"`compress.network` must take the data, but a pass of 2 objects of shape .* failed: "),
        ("bent", {"structured": True}, r"`compress.network` must take the data, but a pass of 2 objects"),
        ("no_classes", {}, r"network `own_networks:no_classes` must accept its arguments, .*num_classes"),
        ("several", {}, r"`compress.network` must give 10 outputs for one object, .* gives a tuple"),
        ("frozen", {}, r"must have weights that learn, but those of 1 are frozen\nname it in compress.skip"),
        ("narrow", {"network_args": {"num_classes": 5}}, r"`compress.network_args.num_classes` comes from the data"),
        ("forked", {"structured": True}, r"`compress.structured` must have a chain: .*Forked.*\nset it to false"),
        ("nothing", {}, r"`compress.network` must name what gives a torch.nn.Module, .* gives a NoneType"),
        ("normalized", {"divide_batch": True, "lambdas_per_step": 40}, "but a pass of 1 object of shape .* failed: "),
    ],
)
def test_a_network_of_ones_own_that_cannot_be(name, more, match, tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    validate(config(network="own_networks:normalized", network_args={}))
    if name == "frozen":
        validate(config(network="own_networks:frozen", network_args={}, skip=["1"]))
    with pytest.raises(ConfigError, match=match):
        validate(config(**{"network": f"own_networks:{name}", "network_args": {}, **more}))


def test_regression_is_refused():
    values = {"data": {"name": "diabetes", "task": "regression"}, "experiment": {"plan": "compression"}}
    with pytest.raises(ConfigError, match="compress` is for classes"):
        validate(Config.from_dict(values))


@pytest.mark.nni
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_by_a_real_manager(pipeline):
    values = {
        "compress": {**SMALL, "direct": [1.0]},
        "experiment": {"plan": "compression", "device": "cpu", "concurrency": 2, "threads": 1},
    }
    run = pipeline(values)
    out = run.run()
    kinds = {row["hypernet"] for row in run.summary["compression"]}
    assert kinds == {"piecewise_linear", "constant"} and "report.html" in out
    page = (run.output / "report.html").read_text(encoding="utf-8")
    assert "Weights as functions of λ" in page and "Mixing weights over time" not in page
