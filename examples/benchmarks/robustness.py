"""Whether a Bayesian choice of architecture gives more robust networks: MNIST, attacks and structure damage.

    python examples/benchmarks/robustness.py --preset cpu --data mnist --root DATA --output robustness.json

Five ways to choose a cell, ten seeds each: DARTS and Gumbel as published, Dirichlet (single level, guarded), a softmax
with the same guards, operations and single level, and random cells. Every cell is trained from scratch in the same way,
at the width at which it comes nearest to one size, on until it has one accuracy on validation data; then attacked:
FGSM, PGD of 20 steps, a black-box attack, noise, and edges missing at random in every batch. FGSM also meets the
searched networks as the search leaves them, one-hot with its weights, and after one epoch of training more; these
lose edges too.

Tests, named before the first run: per seed, Dirichlet less DARTS, one-sided paired t-tests of (1) accuracy under FGSM
at epsilon .1, (2) at .2, (3) mean accuracy with .1, .2 and .3 of the edges missing, (4) the gap from mixture to
one-hot, DARTS less Dirichlet; Holm's correction over the four. They mean something where sizes are within 10 % and
clean accuracies within .2 points of one another, which the targets say too.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract import STEMS, Target, correct, data_section, parse, write_result
from scipy.stats import ttest_rel
from workers import Job, Outcome, Store, Workers

NAME = "robustness"
EPSILONS, DAMAGES = (0.1, 0.2, 0.3, 0.5, 1.0), (0.1, 0.2, 0.3, 0.4, 0.5)
FIRST_SEED = 71
# A pass of one architecture a step: without it weights have not met one-hot networks when the search ends.
GUARDED = {"auxiliary": 1.0, "normalize": True, "one_hot_passes": 1}
ARMS: dict[str, dict[str, Any]] = {
    "DARTS": {"name": "regularized_darts", "args": {"arc_learning_rate": 0.02}},
    "Gumbel": {
        "name": "regularized_darts",
        "args": {"arc_learning_rate": 0.02, "relaxation": "gumbel", "mixing_temperature": 0.2},
    },
    "softmax, guarded": {
        "name": "dirichlet_darts",
        "args": {"arc_learning_rate": 0.06, "family": "softmax", "kl_structure": 0.0, **GUARDED},
    },
    "Dirichlet": {"name": "dirichlet_darts", "args": {"arc_learning_rate": 0.06, **GUARDED}},
}
RANDOM = "random cells"


@dataclass(frozen=True)
class Setting:
    """How large a preset is.

    A cell is trained on `train_limit` objects for `train_epochs` as usual, then on until it has the accuracy `until` on
    `train_val_limit` others, for no more than `more_epochs`. Test objects: `objects` for networks as a search leaves
    them, of trained ones `attacked`, and `strongly` for PGD and the black box, which take some hundred times as long.
    """

    width: int
    n_nodes: int
    limit: int
    val_limit: int
    epochs: int
    warmup_epochs: int
    train_limit: int
    train_val_limit: int
    train_epochs: int
    until: float
    more_epochs: int
    tune_rate: float
    tune_batch: int
    size: int
    widths: tuple[int, ...]
    objects: int
    attacked: int
    strongly: int


PRESETS = {
    "smoke": Setting(
        width=2,
        n_nodes=2,
        limit=200,
        val_limit=80,
        epochs=2,
        warmup_epochs=1,
        train_limit=250,
        train_val_limit=100,
        train_epochs=1,
        until=0.5,
        more_epochs=2,
        tune_rate=0.025,
        tune_batch=64,
        size=600,
        widths=(2, 3, 4),
        objects=16,
        attacked=16,
        strongly=8,
    ),
    "cpu": Setting(
        width=8,
        n_nodes=3,
        limit=10_000,
        val_limit=2_000,
        epochs=5,
        warmup_epochs=2,
        train_limit=20_000,
        train_val_limit=4_000,
        train_epochs=1,
        until=0.975,
        more_epochs=24,
        tune_rate=0.025,
        tune_batch=64,
        size=12_000,
        widths=tuple(range(4, 65)),
        objects=512,
        attacked=1_024,
        strongly=32,
    ),
}
# Steps between two looks at the validation data, and the learning rate between them.
CHECK, RATE = 100, 0.01
SEEDS = {"smoke": 2, "cpu": 10}


def common(options: argparse.Namespace) -> dict[str, Any]:
    """What all configurations share."""
    setting: Setting = PRESETS[options.preset]
    space = {"stem": STEMS[options.data], "n_cells": 2, "n_nodes": setting.n_nodes, "width": setting.width}
    return {
        "space": {"name": "cell", "args": space},
        "data": data_section(options, setting.limit, setting.val_limit),
        "experiment": {"device": "cpu", "threads": 1},
    }


def search(options: argparse.Namespace, arm: str, seed: int) -> Job:
    """One search."""
    setting: Setting = PRESETS[options.preset]
    guarded = "auxiliary" in ARMS[arm]["args"]
    section = {
        "epochs": setting.epochs,
        "warmup_epochs": setting.warmup_epochs if guarded else 0,
        "batch_size": 32 if guarded else 64,  # of a single level it is one half
        "learning_rate": 0.1 if guarded else 0.05,
        "random": 0,
    }
    config = {**common(options), "strategy": ARMS[arm], "search": section}
    parameters = {"trial": f"search-{arm}-{seed}", "seed": seed, "objects": setting.objects}
    parameters |= {"tune_rate": setting.tune_rate, "tune_batch": setting.tune_batch}
    return Job(f"s{seed}-{arm}", f"{NAME}:searched_and_attacked", config, parameters, (0, seed))


def training(options: argparse.Namespace, arm: str, seed: int, choices: dict[str, Any]) -> Job:
    """The training of a cell at the common size, and the attacks on it."""
    from baselines import nearest_width

    setting: Setting = PRESETS[options.preset]
    width = nearest_width(common(options)["space"]["args"], choices, setting.widths, setting.size)
    section = {"epochs": setting.train_epochs, "space": {"width": width}}
    parameters = {"trial": f"train-{arm}-{seed}", "choices": choices, "seed": seed, "objects": setting.attacked}
    parameters |= {"strongly": setting.strongly, "until": setting.until, "more_epochs": setting.more_epochs}
    config = {**common(options), "retrain": section}
    config["data"] = data_section(options, setting.train_limit, setting.train_val_limit)
    return Job(f"s{seed}-{arm}/train", f"{NAME}:trained_and_attacked", config, parameters, (1, seed))


def searched_and_attacked(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: `run_search`, then FGSM on its one-hot network, as it is and after an epoch on the training set.

    The epoch is one of SGD with momentum, of a constant rate. Accuracies are of test objects: clean, then by epsilon;
    and after the epoch by the share of edges that are missing, other ones for every 32 objects.
    """
    import torch

    from nni_bayes_nas.experiment import attacks
    from nni_bayes_nas.experiment.damage import damaged, edges_of_supernet
    from nni_bayes_nas.experiment.data import batches, load_data
    from nni_bayes_nas.experiment.evaluate import box_of
    from nni_bayes_nas.experiment.search import run_search

    data, seed = load_data(config.data), int(parameters["seed"])
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))[: int(parameters["objects"])]
    (x, y), box, found = data.test[order], box_of(data), {}

    def attacked(shared: Any, choices: dict[str, Any]) -> list[float]:
        with shared.alone(choices) as network:
            images = [attacks.fgsm(network, x, y, epsilon, box) for epsilon in (0.0, *EPSILONS)]
            return [attacks.accuracy(network, changed, y) for changed in images]

    def with_damage(shared: Any, choices: dict[str, Any], share: float) -> float:
        generator = torch.Generator().manual_seed(4)
        names = edges_of_supernet(shared.network)
        with shared.alone(choices) as network, damaged(network, names, share, generator), torch.no_grad():
            return attacks.accuracy(network, x, y, 32)

    def inspect(reader: Any, architectures: list[dict[str, Any]]) -> None:
        shared, choices = reader.shared, architectures[0]["choices"]
        found["one_hot_attacked"] = attacked(shared, choices)
        step = sgd(shared.network, parameters["tune_rate"])
        with shared.binding.only(choices, shared.structure.reference):
            for images, classes in batches(data.train, parameters["tune_batch"], seed=seed):
                step(images, classes)
        found["tuned_attacked"] = attacked(shared, choices)
        found["tuned_damaged"] = [with_damage(shared, choices, share) for share in (0.0, *DAMAGES)]

    result = run_search(config, parameters, directory, report, inspect=inspect)
    return {**result, "architectures": [{**result["architectures"][0], **found}]}


def sgd(network: Any, rate: float) -> Callable[[Any, Any], None]:
    """What trains a network by one mini-batch: images and classes; SGD with momentum, its rate constant."""
    import torch
    from torch.nn.functional import cross_entropy

    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, nesterov=True)

    def step(images: Any, classes: Any) -> None:
        optimizer.zero_grad()
        cross_entropy(network.train()(images), classes).backward()
        optimizer.step()

    return step


def train_until(network: Any, data: Any, accuracy: float, epochs: int, seed: int) -> tuple[float, float]:
    """Steps of `sgd` until the validation accuracy is reached, or for so many epochs.

    Returns:
        Validation accuracy, and epochs that it took.
    """
    import torch

    from nni_bayes_nas.experiment import attacks
    from nni_bayes_nas.experiment.data import batches

    step, steps = sgd(network, RATE), 0
    for epoch in range(epochs):
        train = batches(data.train, 64, seed=1_000 * seed + epoch)
        for images, classes in train:
            if steps % CHECK == 0:
                with torch.no_grad():
                    found = attacks.accuracy(network, *data.val[:], 1_024)
                if found >= accuracy:
                    return found, steps / len(train)
            steps += 1
            step(images, classes)
    with torch.no_grad():
        return attacks.accuracy(network, *data.val[:], 1_024), float(epochs)


def trained_and_attacked(config: Any, parameters: dict[str, Any], directory: Path, report: Any) -> dict[str, Any]:
    """A kind of job: `run_retrain`, `train_until`, then what `nni-bayes-nas evaluate` does.

    Of "strongly" attacked objects the row has the accuracies under "pgd" and "square", and their clean one.
    """
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.evaluate import Settings, box_of, evaluated
    from nni_bayes_nas.experiment.retrain import run_retrain
    from nni_bayes_nas.experiment.retrained import Retraining, rebuild, save

    result = run_retrain(config, parameters, directory, report)
    data = load_data(config.data)
    retraining = Retraining(config, {"id": directory.name, **parameters}, {"seed": parameters["seed"]}, directory)
    network = rebuild(retraining)[0]
    found, epochs = train_until(network, data, parameters["until"], parameters["more_epochs"], parameters["seed"])
    save(network, data, directory)
    test, box = data.test[:], box_of(data)
    weak = Settings(EPSILONS, DAMAGES, int(parameters["objects"]), attacks=("fgsm", "noise"))
    strong = Settings(EPSILONS, (), int(parameters["strongly"]), restarts=2, attacks=("pgd", "square"))
    row, _ = evaluated(retraining, test, box, weak)
    few, _ = evaluated(retraining, test, box, strong)
    row["attacked"] |= few["attacked"]
    result |= {"val": 100 * found, "more_epochs": epochs}
    return {**result, "evaluated": {**row, "masked": few["masked"], "strongly_clean": few["clean"]}}


def row_of(arm: str, seed: int, found: dict[str, Any] | None, outcome: Outcome) -> dict[str, Any]:
    """What a network is worth, and how far the search was from it."""
    head = {"arm": arm, "seed": seed}
    if "error" in outcome:
        return {**head, "error": outcome["error"]}
    result = outcome["result"]
    row, evaluated = {**head, **{name: result[name] for name in ("params", "val", "more_epochs")}}, result["evaluated"]
    if found is not None and arm != RANDOM:
        row |= {"mixture": found["mixture_accuracy"], "one_hot": found["one_hot_accuracy"]}
        row["gap"] = found["mixture_accuracy"] - found["one_hot_accuracy"]
        row |= {name: found[name] for name in ("one_hot_attacked", "tuned_attacked", "tuned_damaged")}
    row |= {"test": 100 * evaluated["scores"]["accuracy"], **evaluated["attacked"]}
    row |= {name: evaluated[name] for name in ("clean", "strongly_clean")}
    return {**row, "damaged": evaluated["damaged"], "masked": evaluated["masked"], "seconds": outcome["seconds"]}


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The four tests, with Holm's correction; empty with fewer than two common seeds."""
    by_arm = {arm: {row["seed"]: row for row in rows if row["arm"] == arm and "error" not in row} for arm in ARMS}
    seeds = sorted(set(by_arm["Dirichlet"]) & set(by_arm["DARTS"]))
    if len(seeds) < 2:
        return []

    def values(arm: str, number: Any) -> list[float]:
        return [number(by_arm[arm][seed]) for seed in seeds]

    numbers = {
        "FGSM at .1": lambda row: row["fgsm"][0],
        "FGSM at .2": lambda row: row["fgsm"][1],
        "edges missing": lambda row: statistics.fmean(row["damaged"][:3]),
        "gap to one-hot, less": lambda row: -row["gap"],
    }
    found = []
    for name, number in numbers.items():
        ours, theirs = values("Dirichlet", number), values("DARTS", number)
        difference = statistics.fmean(a - b for a, b in zip(ours, theirs, strict=True))
        # Equal values everywhere say nothing.
        p = 1.0 if ours == theirs else float(ttest_rel(ours, theirs, alternative="greater").pvalue)
        found.append({"test": name, "seeds": len(seeds), "difference": difference, "p": p})
    correct(found)
    return found


def targets(rows: list[dict[str, Any]], tests: list[dict[str, Any]]) -> list[Target]:
    """Sizes and accuracies that can be compared, and the tests."""
    done = [row for row in rows if "error" not in row]
    arms = sorted({row["arm"] for row in done})
    clean = [statistics.fmean(row["test"] for row in done if row["arm"] == arm) for arm in arms]
    sizes = [row["params"] for row in done]
    found = [
        Target("4", "largest size / smallest size", max(sizes) / min(sizes) if sizes else None, 1.1 / 0.9, "lower"),
        Target("4", "largest difference of clean accuracy", max(clean) - min(clean) if clean else None, 0.2, "lower"),
    ]
    for one in tests:
        found.append(Target("4", f"p (Holm) of {one['test']}: Dirichlet above DARTS", one["p_holm"], 0.05, "lower"))
    return found


def print_table(rows: list[dict[str, Any]], tests: list[dict[str, Any]]) -> None:
    """Accuracy by epsilon and by damage, a line an arm: means over seeds."""
    done = [row for row in rows if "error" not in row]
    for kind in ("one_hot_attacked", "tuned_attacked", "tuned_damaged", "fgsm", "pgd", "square", "noise", "damaged"):
        values = DAMAGES if "damaged" in kind else EPSILONS
        print(f"\n{kind:<18}{'n':>3}{'clean':>16}" + "".join(f"{value:>16g}" for value in values))
        for arm in dict.fromkeys(row["arm"] for row in done):
            mine = [row for row in done if row["arm"] == arm and row.get(kind) is not None]
            # Those of the search begin with their own clean accuracy.
            clean = "strongly_clean" if kind in ("pgd", "square") else "clean"
            lines = [row[kind] if len(row[kind]) > len(values) else [row[clean], *row[kind]] for row in mine]
            columns = [list(column) for column in zip(*lines, strict=True)] or [[]] * (1 + len(values))
            print(f"{arm:<18}{len(mine):>3}" + "".join(f"{_spread(column):>16}" for column in columns))
    print()
    for one in tests:
        print(f"{one['test']:<22} difference {one['difference']:+.4f}, p {one['p']:.4f}, Holm {one['p_holm']:.4f}")
    print()


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> int:
    """Run what the file of finished jobs does not hold yet."""
    options = parse(__doc__, PRESETS, SEEDS)
    from judged import random_choices

    seeds = list(range(FIRST_SEED, FIRST_SEED + options.seeds))
    store = Store(options.output)
    searches = {(arm, seed): search(options, arm, seed) for arm in ARMS for seed in seeds}
    arm_of = {job.name: key for key, job in searches.items()}
    begun: dict[str, tuple[str, int, dict[str, Any]]] = {}

    def follow(finished: Job, outcome: Outcome) -> list[Job]:
        if finished.name not in arm_of or "error" in outcome:
            return []
        arm, seed = arm_of[finished.name]
        result = outcome["result"]
        found = [(arm, result["architectures"][0])]
        if arm == "DARTS":
            found.append((RANDOM, {"choices": random_choices(result, 1, seed)[0]}))
        jobs = [training(options, name, seed, row["choices"]) for name, row in found]
        begun.update({job.name: (name, seed, row) for job, (name, row) in zip(jobs, found, strict=True)})
        return jobs

    with Workers(store, options.output.with_suffix(".work"), options.workers) as workers:
        outcomes = workers.run(searches.values(), follow)
    rows = [row_of(arm, seed, found, outcomes[name]) for name, (arm, seed, found) in begun.items()]
    rows += [{"arm": a, "seed": s, **outcomes[j.name]} for (a, s), j in searches.items() if "error" in outcomes[j.name]]
    tests = compared(rows)
    found, complete = targets(rows, tests), all("error" not in row for row in rows)
    write_result(options, NAME, [*rows, *tests], found, seconds=store.seconds, workers=workers.n, complete=complete)
    print_table(rows, tests)
    print(*found, sep="\n")
    return 0 if complete else 1


if __name__ == "__main__":
    raise SystemExit(main())
