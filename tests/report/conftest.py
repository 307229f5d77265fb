"""Synthetic run folders: the report's input is files, so these need neither a search nor NNI."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

OPERATIONS = ["none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3"]
N_NODES = 3


def _choices(level: float, rng: random.Random) -> dict[str, Any]:
    """A cell architecture that gets simpler as `level` in [0, 1] grows."""
    choices: dict[str, Any] = {}
    for cell in ("normal", "reduce"):
        for node in range(2, 2 + N_NODES):
            for slot, source in enumerate(rng.sample(range(node), 2)):
                big = rng.random() > level
                choices[f"{cell}/op_{node}_{slot}"] = rng.choice(OPERATIONS[4:] if big else OPERATIONS[1:4])
                choices[f"{cell}/input_{node}_{slot}"] = [source]
    return choices


def _retrain(name: str, accuracy: float, repeats: int, rng: random.Random) -> list[dict[str, Any]]:
    tests = [accuracy + rng.gauss(0, 0.003) for _ in range(repeats)]
    return [
        {"seed": i, "val_accuracy": test + 0.002, "test_accuracy": test, "seconds": 20.5, "trial": f"{name}/{i}"}
        for i, test in enumerate(tests)
    ]


def _retrain_rows(epochs: int, result: dict[str, Any]) -> list[dict[str, Any]]:
    final = result["val_accuracy"]
    curve = [
        final - 0.7 * math.exp(-0.6 * epoch) - 0.01 * (result["seed"] + 1) / (epoch + 1) for epoch in range(epochs)
    ]
    return [
        {"stage": "retrain", "epoch": epoch, "step": 20 * epoch, "terms": {"val_accuracy": value}}
        for epoch, value in enumerate(curve)
    ]


def _write_metrics(folder: Path, trial: str, rows: list[dict[str, Any]]) -> None:
    target = folder / "trials" / trial
    target.mkdir(parents=True)
    (target / "metrics.jsonl").write_text("".join(json.dumps({**row, "trial": trial}) + "\n" for row in rows))


def _search_rows(epochs: int, with_lambda: bool, rng: random.Random) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    labels = [f"{c}/{n}_{s}" for c in ("normal", "reduce") for n in range(2, 2 + N_NODES) for s in range(n)]
    pull = {label: [rng.gauss(0, 1.2) for _ in OPERATIONS] for label in labels}
    for epoch in range(epochs):
        progress = epoch / max(epochs - 1, 1)
        terms = {
            "train_loss": 2.3 * math.exp(-3 * progress) + 0.02 * rng.random(),
            "structure_loss": 2.3 * math.exp(-2.6 * progress) + 0.05 * rng.random(),
            "val_loss": 2.2 * math.exp(-2.4 * progress) + 0.08,
            "val_accuracy": 0.985 - 0.8 * math.exp(-5 * progress),
            "entropy": 35 * (1 - 0.7 * progress),
        }
        if with_lambda:
            terms["expected_cost_min_lambda"] = 3e4 * (1 + 0.4 * progress)
            terms["expected_cost_max_lambda"] = 3e4 * (1 - 0.75 * progress)
        rows.append({"stage": "search", "epoch": epoch, "step": 20 * epoch, "terms": terms})
        weights: dict[str, Any] = {}
        for u in ("0.0", "0.5", "1.0") if with_lambda else ("mean",):
            tilt = 3.0 * (float(u) - 0.5) if with_lambda else 0.0
            weights[u] = {}
            for label in labels:
                raw = [math.exp(progress * (2 * g - tilt * i / 3)) for i, g in enumerate(pull[label])]
                weights[u][label] = {op: w / sum(raw) for op, w in zip(OPERATIONS, raw, strict=True)}
        rows.append({"stage": "search", "epoch": epoch, "weights": weights})
    return rows


def make_run(
    folder: Path,
    *,
    searches: int = 1,
    repeats: int = 1,
    with_lambda: bool = True,
    with_metrics: bool = True,
    status: str = "done",
    n_random: int = 3,
    n_lambdas: int = 8,
    epochs: int = 12,
    title: str = "Digits: cells over λ",
) -> Path:
    """Write the run folder of a plausible digits run; the order of the curve has bumps on purpose."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    summary: dict[str, Any] = {"schema": 1, "status": status, "space": "cell", "data": "digits", "seed": 0}
    summary |= {"searches": [], "architectures": [], "curves": {}, "failures": []}
    n_trials = searches * (n_lambdas + 1)
    summary["experiment"] = {"id": "k3x9qpzd", "trials_succeeded": n_trials, "trials_failed": 0}
    for s in range(searches):
        name = "hyper_darts" if with_lambda else "regularized_darts"
        terms = {"train_loss": 0.0512, "val_loss": 0.0831, "entropy": 10.4}
        search = {"id": f"s{s}", "strategy": name, "seed": s, "seconds": 81.2, "steps": 1200, "terms": terms}
        search |= {"optimizer_steps_after_search": 0, "val_accuracy": 0.981, "cost": "params", "cost_kind": "exact"}
        summary["searches"].append(search)
        lams = [1e-4 * 1000 ** (i / (n_lambdas - 1)) for i in range(n_lambdas)] if with_lambda else [None]
        for i, lam in enumerate(lams):
            level = i / max(len(lams) - 1, 1)
            same = i > 0 and i in (2, 7)
            choices = summary["architectures"][-1]["choices"] if same else _choices(level, rng)
            params = summary["architectures"][-1]["params"] if same else int(42000 * 0.17**level * (1 + 0.05 * s))
            name = f"s{s}-lam-{lam:.4g}" if lam is not None else f"s{s}-mean"
            results = _retrain(name, 0.988 - 0.02 * level**2, repeats, rng)
            summary["architectures"].append(
                {
                    "id": name,
                    "search": f"s{s}",
                    "lambda": lam,
                    "origin": "mean" if lam is None else "lambda",
                    "choices": choices,
                    "log_prob": -3.1 - 2 * rng.random(),
                    "params": params,
                    "macs": params * 47,
                    "retrain": summary["architectures"][-1]["retrain"] if same else results,
                }
            )
            if with_metrics and not same:
                index = f"lam{i}" if with_lambda else "mean"
                for seed, result in enumerate(results):
                    _write_metrics(folder, f"retrain-s{s}-{index}-seed{seed}", _retrain_rows(epochs, result))
        for r in range(n_random):
            params = int(9000 * 1.7**r)
            results = _retrain(f"s{s}-rand-{r}", 0.969 + 0.004 * r, repeats, rng)
            if with_metrics:
                for seed, result in enumerate(results):
                    _write_metrics(folder, f"retrain-s{s}-rand{r}-seed{seed}", _retrain_rows(epochs, result))
            summary["architectures"].append(
                {
                    "id": f"s{s}-rand-{r}",
                    "search": f"s{s}",
                    "lambda": None,
                    "origin": "random",
                    "choices": _choices(0.6, rng),
                    "log_prob": -19.0,
                    "params": params,
                    "macs": params * 50,
                    "retrain": results,
                }
            )
        if with_lambda:
            summary["curves"][f"s{s}"] = [
                {
                    "lambda": 1e-4 * 1000 ** (i / 32),
                    "u": i / 32,
                    "params": int(42000 * 0.17 ** (round(i / 3) / 11)) + (900 if i == 15 else 0),
                    "macs": 10**6,
                    "expected_cost": 40000 * 0.18 ** (i / 32),
                }
                for i in range(33)
            ]
        if with_metrics:
            _write_metrics(folder, f"search-s{s}", _search_rows(epochs, with_lambda, rng))
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {
        "strategy": {"name": summary["searches"][0]["strategy"] if searches else "hyper_darts", "args": {}},
        "search": {"epochs": epochs, "searches": max(searches, 1)},
        "retrain": {"epochs": epochs, "repeats": repeats},
        "report": {"title": title},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    command = "nni-bayes-nas run examples/configs/demo-digits.yaml --output runs/demo"
    environment = {"command": command, "device": "cpu", "gpus": [], "packages": {"nni": "3.0", "torch": "2.15.0"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder with `make_run`'s options and returns it."""

    def make(name: str = "demo", **options: Any) -> Path:
        return make_run(tmp_path / name, **options)

    return make


@pytest.fixture
def edit_summary() -> Callable[..., None]:
    """Changes a run folder's summary: `edit(folder, function)` with function(summary) changing it in place."""

    def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
        path = folder / "summary.json"
        summary = json.loads(path.read_text())
        change(summary)
        path.write_text(json.dumps(summary))

    return edit
