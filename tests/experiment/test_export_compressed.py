"""The command `export` on compressions: small files with the outputs of the networks whose accuracy was measured."""

import importlib.util
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nni_bayes_nas.cli import main
from nni_bayes_nas.compression.networks import cnn, mlp
from nni_bayes_nas.compression.packing import pack
from nni_bayes_nas.compression.pruning import kept, mean_network, prune
from nni_bayes_nas.config import Config
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.compress import run_compress
from nni_bayes_nas.experiment.compressed import Compressed, find_compressed, rebuild
from nni_bayes_nas.experiment.data import load_data
from nni_bayes_nas.experiment.export import export_compressed
from nni_bayes_nas.experiment.plan import Ledger
from nni_bayes_nas.experiment.plans.compression import Compression
from nni_bayes_nas.experiment.program import write_program
from nni_bayes_nas.experiment.record import read_json, write_json
from nni_bayes_nas.layers.variational import to_variational
from nni_bayes_nas.report.tables import measure, percent

NAMES = ("compress-piecewise_linear-seed0", "compress-direct-lam1-seed0")
onnx = pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs the extra `export`")


def compressed(folder: Path, **compress) -> Path:
    """The folder of a run, as the plan leaves it; its trials run in this process."""
    values = {
        "experiment": {"plan": "compression", "device": "cpu", "threads": 1},
        "compress": {
            "network_args": {"hidden": [200, 32]},
            "epochs": 20,
            "batch_size": 64,
            "lambdas": [0.1, 3.0],
            "direct": [1.0],
            "fractions": [0.0, 0.95],
            "draws": 1,
            **compress,
        },
    }
    config = Config.from_dict(values)
    ledger = Ledger(Compression(config), retries=0)
    for spec in ledger.take():
        directory = folder / "trials" / spec.name
        directory.mkdir(parents=True)
        ledger.done(spec.name, run_compress(config, spec.parameters, directory, lambda row: None), "job")
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    write_json(folder / "summary.json", {"architectures": [], **ledger.summary()})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(tmp_path_factory.mktemp("compressed") / "run", finetune_epochs=1)


def call(program: Path, x: torch.Tensor) -> np.ndarray:
    if program.suffix == ".pt2":
        with torch.no_grad():
            return np.asarray(torch.export.load(program).module()(x))
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(program).run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize("format", ["pt2", pytest.param("onnx", marks=onnx)])
def test_the_file_has_the_accuracy_of_the_curve_and_is_small(format, made, tmp_path, capsys):
    output = tmp_path / f"net.{format}"
    options = ["--lambda", "3", "--fraction", "0.95", "--format", format, "--output", str(output)]
    assert main(["export", str(made), "--compressed", NAMES[0], *options]) == 0
    printed = capsys.readouterr().out
    data = load_data(Config.from_dict({}).data)
    x, y = data.test.tensors
    logits = call(output, x * data.sd + data.mean)
    found = find_compressed(made, NAMES[0], 3.0, 0.95)
    assert found.point["finetuned"]["test_accuracy"] > 0.3
    assert (logits.argmax(1) == y.numpy()).mean() == pytest.approx(found.point["finetuned"]["test_accuracy"], abs=1e-6)
    assert "at lambda 3, 95 % of the weights left out and trained further, validation accuracy" in printed
    # The program itself does not grow with the network; dense weights had 76 KiB.
    assert output.stat().st_size < 40 * 1024


@pytest.mark.parametrize("make, shape", [(mlp, (1, 28, 28)), (partial(cnn, channels=(16, 32), hidden=64), (3, 32, 32))])
@pytest.mark.parametrize("format", ["pt2", pytest.param("onnx", marks=onnx)])
def test_a_twentieth_of_the_weights_is_a_tenth_of_the_file(format, make, shape, tmp_path):
    """LeNet-300-100, convolutions with normalization, and the logits of the network that the packed one stands for."""
    torch.manual_seed(0)
    dense = make(shape, 10).eval()
    gaussian = to_variational(make(shape, 10))
    prune(gaussian, fraction=0.95)
    plain, x = mean_network(gaussian).eval(), torch.rand(7, *shape)
    sizes = []
    for name, network in (("dense", dense), ("packed", pack(plain).eval())):
        path = tmp_path / f"{name}.{format}"
        write_program(network, x[:3], path)
        sizes.append(path.stat().st_size)
    assert sizes[1] <= sizes[0] / 10
    with torch.no_grad():
        np.testing.assert_allclose(call(path, x), plain(x).numpy(), atol=1e-5)


def test_every_point_can_be_had(made):
    data = load_data(Config.from_dict({}).data)
    x, y = data.test.tensors
    for name, lams in zip(NAMES, ([0.1, 3.0], [None]), strict=True):
        for lam in lams:
            for fraction in (0.0, 0.95):
                found = find_compressed(made, name, lam, fraction)
                network, _ = rebuild(found)
                with torch.no_grad():
                    accuracy = float((network(x).argmax(1) == y).double().mean())
                assert accuracy == pytest.approx(found.point["finetuned"]["test_accuracy"], abs=1e-9)


def as_read_off(found: Compressed) -> Compressed:
    """The point of a curve, as if it were none."""
    return replace(found, point={"fraction": found.point["fraction"]})


@pytest.mark.parametrize("name, lam", [(NAMES[0], 3.0), (NAMES[1], None)])
def test_what_is_read_off_later_is_what_was_read_off(name, lam, made):
    """Of a point of the curve, before it was trained further."""
    x, y = load_data(Config.from_dict({}).data).test.tensors
    for fraction in (0.0, 0.95):
        found = find_compressed(made, name, lam, fraction)
        network, _ = rebuild(as_read_off(found))
        with torch.no_grad():
            accuracy = float((network(x).argmax(1) == y).double().mean())
        assert accuracy == pytest.approx(found.point["test_accuracy"], abs=1e-9)
        assert accuracy != found.point["finetuned"]["test_accuracy"]


def test_any_lambda_and_share_can_be_had(made):
    """Between the lambda of the curves too; it keeps as many weights as asked. Alike is what leaves as many."""
    assert find_compressed(made, NAMES[0], 3.0, 0.95001).measured
    assert not find_compressed(made, NAMES[0], 3.0, 0.951).measured
    network, _ = rebuild(find_compressed(made, NAMES[0], 0.7, 0.9))
    weights = 64 * 200 + 200 * 32 + 320
    assert kept(network) == weights - round(0.9 * weights)


def test_what_was_trained_on_can_be_had(tmp_path):
    run = compressed(tmp_path / "run", direct=[], lambdas=[1.0], epochs=3, posterior_finetune_epochs=2)
    x, y = load_data(Config.from_dict({}).data).test.tensors
    for fraction in (0.0, 0.95):
        found = find_compressed(run, NAMES[0], 1.0, fraction, trained_on=True)
        row = found.row["rows"][0]
        assert found.point in row["posterior_finetuned"]["curve"] and "trained on at it by the bound" in found.words
        with torch.no_grad():
            accuracy = float((rebuild(found)[0](x).argmax(1) == y).double().mean())
        assert accuracy == pytest.approx(found.point["test_accuracy"], abs=1e-9)
        assert found.name != find_compressed(run, NAMES[0], 1.0, fraction).name
    for lam, fraction, said in ((1.0, 0.5, "must be one of 0, 0.95, got 0.5"), (2.0, 0.0, "which are 1, got 2")):
        with pytest.raises(ConfigError, match=said):
            find_compressed(run, NAMES[0], lam, fraction, trained_on=True)


@pytest.mark.slow
def test_any_lambda_and_share_can_be_exported(made, tmp_path, capsys):
    options = ["--lambda", "0.7", "--fraction", "0.9", "--output", str(tmp_path / "net.pt2")]
    assert main(["export", str(made), "--compressed", NAMES[0], *options]) == 0
    said = "at lambda 0.7, 90 % of the weights left out; read off now, neither trained further nor measured"
    assert said in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", pytest.param("onnx", marks=onnx)])
@pytest.mark.parametrize(
    ("network", "args"), [("mlp", {"hidden": [200, 32]}), ("cnn", {"channels": [16, 32], "hidden": 32})]
)
def test_whole_neurons_make_a_dense_network_that_is_smaller(network, args, format, tmp_path):
    made = {"network": network, "network_args": args, "epochs": 5}
    run = compressed(tmp_path / "run", structured=True, fractions=[0.0, 0.7], direct=[], lambdas=[1.0], **made)
    whole, found = (find_compressed(run, NAMES[0], 1.0, fraction) for fraction in (0.0, 0.7))
    smaller, _ = rebuild(found)
    assert sum(p.numel() for p in smaller.parameters()) == found.point["params"] < 0.5 * whole.point["params"]
    written = export_compressed(run, NAMES[0], format, fraction=0.7)
    assert written.path == run / "export" / f"{NAMES[0]}-lambda1-fraction0.7.{format}"
    assert written.parameters == found.point["params"] and written.difference <= 1e-5
    dense = export_compressed(run, NAMES[0], format, fraction=0.0)
    saved = 4 * (whole.point["params"] - found.point["params"])
    assert dense.path.stat().st_size - written.path.stat().st_size == pytest.approx(saved, rel=0.1)


BAD = {
    "no compression": (["--compressed", "compress-mlp-seed0"], "has no compression `compress-mlp-seed0`"),
    "no lambda": (["--compressed", NAMES[0], "--fraction", "0"], "`--lambda` must be given, measured are 0.1, 3"),
    "lambda outside": (
        ["--compressed", NAMES[0], "--lambda", "4", "--fraction", "0"],
        "`--lambda` must lie in the range of `compress-piecewise_linear-seed0`, 0.1 to 3, got 4",
    ),
    "direct lambda": (["--compressed", NAMES[1], "--lambda", "2", "--fraction", "0"], "1 to 1, got 2"),
    "no fraction": (["--compressed", NAMES[1]], "`--fraction` must be given, measured are 0, 0.95"),
    "no such fraction": (["--compressed", NAMES[1], "--fraction", "1"], "`--fraction` must lie in [0, 1), got 1"),
    "seed": (["--compressed", NAMES[1], "--seed", "1"], "`--seed` must go with --architecture, got it with --compress"),
    "architecture": (["--architecture", "a", "--lambda", "1"], "`--lambda` must go with --compressed"),
    "trained on": (
        ["--compressed", NAMES[1], "--fraction", "0", "--trained-on"],
        "`--trained-on` must be for a network that was trained on at its lambda, of `compress-direct-lam1-seed0` none",
    ),
    "architecture, trained on": (["--architecture", "a", "--trained-on"], "`--trained-on` must go with --compressed"),
    "both": (["--architecture", "a", "--compressed", "b"], "not allowed with"),
    "suffix": (["--compressed", NAMES[1], "--fraction", "0", "--output", "a.onnx"], "`--output` must end in .pt2"),
}


@pytest.mark.parametrize("options, said", BAD.values(), ids=BAD)
def test_mistakes(options, said, made, capsys):
    before = sorted(made.rglob("*"))
    try:
        code = main(["export", str(made), *options])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and said in capsys.readouterr().err and sorted(made.rglob("*")) == before


def test_folders_that_are_not_whole(made, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    point = find_compressed(run, NAMES[1], 1.0, 0.95)
    file = point.directory / "networks" / point.point["file"]
    file.write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"must hold the weights of the network that config\.yaml describes"):
        rebuild(point)
    file.unlink()
    with pytest.raises(ConfigError, match=r"needs the file .*fraction0\.95\.pt, which is not there"):
        find_compressed(run, NAMES[1], 1.0, 0.95)
    write_json(run / "summary.json", {**read_json(run / "summary.json"), "compression": []})
    with pytest.raises(ConfigError, match=r"its summary\.json has no compression"):
        find_compressed(run, NAMES[1])
    with pytest.raises(ConfigError, match="is no run folder"):
        find_compressed(tmp_path, NAMES[1])


def test_what_a_search_has_found_with_its_weights(tmp_path, capsys):
    values = {
        "space": {"name": "cell", "args": {"width": 4, "n_cells": 1, "n_nodes": 1}},
        "data": {"limit": 256, "val_limit": 64},
        "strategy": {
            "name": "dirichlet_darts",
            "args": {"weights": "variational", "weight_hypernet": "linear", "lambda_range": [0.1, 3.0]},
        },
        "search": {"epochs": 2, "warmup_epochs": 1, "optimizer": "adam", "lambdas": 2, "random": 0},
        "compress": {"fractions": [0.0, 0.9], "draws": 1},
        "experiment": {"device": "cpu"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    run = tmp_path / "run"
    assert main(["search", str(tmp_path / "config.yaml"), "--output", str(run)]) == 0
    (row,) = read_json(run / "summary.json")["compression"]
    assert row["name"] == "search-s0" and [one["lambda"] for one in row["rows"]] == pytest.approx([0.1, 3.0])
    data = load_data(Config.from_dict(values).data)
    x, y = data.test.tensors
    for one in row["rows"]:
        for point in one["curve"]:
            found = find_compressed(run, "search-s0", one["lambda"], point["fraction"])
            for as_asked in (found, as_read_off(found)):
                network, _ = rebuild(as_asked)
                with torch.no_grad():
                    accuracy = float((network(x).argmax(1) == y).double().mean())
                assert accuracy == pytest.approx(point["test_accuracy"], abs=1e-9)
    between = find_compressed(run, "search-s0", 0.5, 0.8)
    assert not between.measured and rebuild(between)[0](x[:3]).shape == (3, 10)
    page = (run / "report.html").read_text()
    section = page[page.index('<section id="compression">') :].partition("</section>")[0]
    assert "Test accuracy by compression" in section and section.count(row["hypernet"]) >= 2
    for one in row["rows"]:
        assert percent(measure([one["curve"][1]["test_accuracy"]])) in section
