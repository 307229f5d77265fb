"""What `selection.py` trains: by group of arms, network, recipe and what is frozen."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from contract import data_section
from workers import Job

CRITERIA = ("random", "gradient", "preconditioner", "snr", "effective_perturbation", "gain")
# With what a weight costs at its places, which in an MLP are one for all.
OF_THE_CNN, OF_THE_CNN_FROZEN = (*CRITERIA, "gain_per_flop"), 0.9
FROZEN = (0.6, 0.8, 0.9, 0.96)
# With the output layer active, as it is where rows are chosen: without it random single weights have a handicap.
ACTIVE_OUTPUT, ACTIVE_OUTPUT_FROZEN = ", output active", 0.8
# Of the paper: SGD, tanh, pixels standardized, 600 steps, the choice after 100, by the gradient of all data there and
# variances of all steps before.
PAPER_CRITERIA, PAPER_FROZEN = ("preconditioner", "gradient", "random"), (0.2, 0.4, 0.6, 0.8, 0.9, 0.96)
# In its setting too, by gradients of the ten steps before the choice; in all other groups of a hundred.
PAPER_WINDOW, OF_STEPS, WINDOW = 10, ", ten steps", 100
PAPER_OTHERS = (
    *(f"{name}{OF_STEPS}" for name in ("preconditioner", "gradient")),
    *("snr", "effective_perturbation", "gain"),
)
# Its curves, read off its figure: accuracy in % with so much frozen (all: as after 100 steps), and zeroed.
PUBLISHED_FROZEN = {
    "preconditioner": {0.0: 96.9, 0.6: 96.65, 0.8: 96.1, 0.9: 95.3, 0.96: 94.45, 1.0: 92.6},
    "gradient": {0.0: 97.0, 0.6: 96.55, 0.8: 95.7, 0.9: 94.8, 0.96: 94.0, 1.0: 92.6},
    "random": {0.0: 96.9, 0.6: 96.25, 0.8: 95.5, 0.9: 94.5, 0.96: 93.8, 1.0: 92.75},
}
PUBLISHED_ZEROED = {
    "magnitude": {0.8: 96.1, 0.9: 95.1, 0.94: 93.8, 0.96: 91.5, 0.98: 74.7},
    "random": {0.8: 95.6, 0.9: 94.0, 0.94: 91.8, 0.96: 88.3, 0.98: 67.7},
}
STOPPED = "all frozen"
# The seed's two choices together: shares that go on, and that are not zero, from the choice on or in the end alone.
BOTH = tuple(
    (active, kept, at)
    for active in (0.5, 0.2)
    for kept in (0.5, 0.2, 0.1)
    for at in ("selection", "end")
    if kept >= active or at == "end"
)
ZEROED = (0.8, 0.9, 0.94, 0.95, 0.96, 0.98)
# Of the networks that are not the paper's.
OTHERS_FROZEN = {"mlp-300-100": (0.8, 0.96), "cnn": (0.8, 0.96), "cnn-normalized": (0.8,)}
OTHERS, OTHERS_ZEROED = tuple(OTHERS_FROZEN), {"cnn-normalized": (0.9, 0.95)}
KEEP_BY = ("magnitude", "z", "random")
# Rates that validation data prefer with other seeds, of three to five each, for trainings without selection; of
# samplers by the loss of the averaged draws. Of "mandt" it is that of the first steps, and the largest afterwards.
RATES = {"sgd": 0.4, "momentum": 0.05, "adam": 3e-3, "sgld": 0.4, "psgld": 3e-3, "mandt": 0.4}
OUTPUT = {"mlp-200": "net.3", "mlp-300-100": "net.5", "cnn": "net.9", "cnn-normalized": "net.13"}
# Of an arm whose time is compared, and of full training that takes as long: rates, in units of the usual one, of which
# validation data of the first seeds prefer one.
TRIED_RATES, TRIED = (0.5, 1.0, 2.0), " x rate"
# Of batches so large the network takes most of a step; of 128 objects the training loop takes half of it.
LARGE, OF_LARGE = 512, ", batches of 512"
# Network and objects of a batch, by group: how fast MLPs are, of which rows are frozen.
ROWS = {
    f"{name}{end}": (name, size) for end, size in (("", 128), (OF_LARGE, LARGE)) for name in ("mlp-200", "mlp-300-100")
}
# How fast: the arm, by group.
TIMED = {
    **dict.fromkeys(ROWS, "rows gain 0.9"),
    "cnn": "automatic",
    "cnn-normalized": "automatic",
}
FULL = "full"


@dataclass(frozen=True)
class Setting:
    """How large a preset is; epochs of the MLPs where criteria are compared, where rows are, and of the CNNs so."""

    limit: int | None
    epochs: int
    row_epochs: int
    cnn_curve_epochs: int
    cnn_epochs: int
    paper_steps: int
    objects: int


PRESETS = {
    "smoke": Setting(1_024, 1, 1, 1, 1, 20, 1_024),
    "cpu": Setting(None, 5, 12, 2, 6, 600, 55_000),
}
SEEDS = {"smoke": 1, "cpu": 10}
Parameters = dict[str, Any]


def arms(preset: str) -> dict[tuple[str, str], Parameters]:
    """Parameters of a training by group and arm."""
    setting = PRESETS[preset]
    each = setting.objects // 128  # of an epoch: a last batch that is not full is left out
    adam = {"optimizer": "adam", "rate": 3e-3, "falls": True, "batch_size": 128}
    mlp = {**adam, "network": "mlp-200", "steps": setting.epochs * each}
    found: dict[tuple[str, str], Parameters] = {("criteria", FULL): mlp}
    for granularity in ("weight", "neuron"):
        for criterion in CRITERIA:
            for frozen in FROZEN:
                selection = {**_selection(1 - frozen, criterion), "granularity": granularity}
                if granularity == "neuron":
                    selection["always"] = [OUTPUT["mlp-200"]]
                found["criteria", f"{granularity} {criterion} {frozen:g}"] = {**mlp, "selection": selection}
    for criterion in CRITERIA:
        selection = {**_selection(1 - ACTIVE_OUTPUT_FROZEN, criterion), "granularity": "weight"}
        name = f"weight {criterion} {ACTIVE_OUTPUT_FROZEN:g}{ACTIVE_OUTPUT}"
        found["criteria", name] = {**mlp, "selection": {**selection, "always": [OUTPUT["mlp-200"]]}}
    last = {**_selection(2010, "gain"), "granularity": "prefix"}
    found["criteria", "output layer alone"] = {**mlp, "selection": last}
    for name in OTHERS:
        epochs = setting.epochs if name.startswith("mlp") else setting.cnn_curve_epochs
        found |= _curves(name, {**adam, "network": name, "rate": _rate(name), "steps": epochs * each})
    for group, (name, size) in ROWS.items():
        steps = max(12, setting.row_epochs * (setting.objects // size))
        rows = {**adam, "network": name, "batch_size": size, "steps": steps}
        found[group, FULL] = rows
        for criterion in ("gain", "random"):
            selection = {**_selection(0.1, criterion), "granularity": "neuron", "always": [OUTPUT[name]]}
            found[group, f"rows {criterion} 0.9"] = {**rows, "selection": selection}
    for name in ("cnn", "cnn-normalized"):
        cnn = {**adam, "network": name, "rate": _rate(name), "steps": setting.cnn_epochs * each}
        automatic = {**_selection("auto", "gain"), "granularity": "prefix"}
        for shift, suffix in ((0, ""), (2, ", augmented")):
            found[name, f"{FULL}{suffix}"] = {**cnn, "shift": shift}
            # Of images that are augmented nothing can be kept, and the choice must know.
            selection = {**automatic, "cache": shift == 0}
            found[name, f"automatic{suffix}"] = {**cnn, "shift": shift, "selection": selection}
    for active, kept, at in BOTH:
        selection = {**_selection(active, "gain"), "granularity": "weight", "kept": kept, "zero_at": at}
        found["both", both(active, kept, at)] = {**mlp, "selection": selection}
    again = {
        **_selection(0.1, "gain"),
        "granularity": "neuron",
        "always": [OUTPUT["mlp-200"]],
        "thaw_every": max(each, 40),
    }
    found["criteria", "neuron gain 0.9, chosen anew"] = {**mlp, "selection": again}
    return found | _paper(setting) | _zeroed("zeroed", "", mlp, ZEROED) | _optimizers(mlp)


def both(active: float, kept: float, at: str) -> str:
    """Name of an arm of the two choices together."""
    return f"{1 - active:.0%} frozen, {1 - kept:.0%} zero {'in the end' if at == 'end' else 'at once'}"


def _rate(network: str) -> float:
    """Of Adam, falling to nothing, as validation data prefer it with other seeds."""
    return 3e-3 if network.startswith("mlp") else 4e-3


def _curves(name: str, training: Parameters) -> dict[tuple[str, str], Parameters]:
    """Of another network: single weights frozen by every criterion, or zeroed; of the CNN neurons too."""
    group = f"criteria, {name}"
    found = {(group, FULL): training}
    for criterion in CRITERIA if name.startswith("mlp") else OF_THE_CNN:
        for frozen in OTHERS_FROZEN[name]:
            selection = {**_selection(1 - frozen, criterion), "granularity": "weight"}
            found[group, f"weight {criterion} {frozen:g}"] = {**training, "selection": selection}
    for criterion in OF_THE_CNN if name == "cnn" else ():
        selection = {**_selection(1 - OF_THE_CNN_FROZEN, criterion), "granularity": "neuron", "always": [OUTPUT[name]]}
        found[group, f"neuron {criterion} {OF_THE_CNN_FROZEN:g}"] = {**training, "selection": selection}
    return found | _zeroed(group, "zeroed by ", training, of_others(name))


def of_others(name: str) -> tuple[float, ...]:
    """Shares of a network that is not the paper's which are zeroed."""
    return OTHERS_ZEROED.get(name, (0.8, 0.9, 0.95, 0.98))


def is_timed(group: str, arm: str) -> bool:
    """Whether the seconds of an arm are compared: such arms run alone, one after the other."""
    return (group == "optimizers" or group in TIMED) and not arm.endswith(TRIED)


def is_last(group: str) -> bool:
    """Whether it is run after all others: curves of networks of which no test is take the longest."""
    return group.startswith("criteria, ")


def _selection(active: float | str, criterion: str) -> Parameters:
    return {"active": active, "criterion": criterion, "start": 0.2, "window": WINDOW}


def _paper(setting: Setting) -> dict[tuple[str, str], Parameters]:
    # Its rate is not told: of .05 to 3.2 the one that validation data prefer with other seeds.
    recipe = {"optimizer": "sgd", "rate": 1.6, "falls": False, "batch_size": 512, "inputs": "pixels"}
    paper: Parameters = {**recipe, "network": "mlp-200-tanh", "steps": setting.paper_steps}
    begun = setting.paper_steps // 6
    found = {("paper", FULL): paper, ("paper", STOPPED): {**paper, "steps": begun}}
    for name in (*PAPER_CRITERIA, *PAPER_OTHERS):
        of_all = name in PAPER_CRITERIA and name != "random"
        window = begun if of_all else min(PAPER_WINDOW, begun)
        own = {"of_all_data": True} if of_all else {}
        for frozen in PAPER_FROZEN:
            selection = {"active": 1 - frozen, "criterion": name.removesuffix(OF_STEPS), "granularity": "weight"}
            selection |= {"scope": "layer", "start": begun, "window": window}
            found["paper", f"{name} {frozen:g}"] = {**paper, **own, "selection": selection}
    for by, shares in PUBLISHED_ZEROED.items():
        for share in shares:
            # All that is kept goes on, as there.
            selection = {"active": 1 - share, "kept": 1 - share, "keep_by": by, "granularity": "weight"}
            selection |= {"scope": "layer", "start": begun, "window": min(PAPER_WINDOW, begun)}
            found["paper", f"zeroed by {by} {share:g}"] = {**paper, "selection": selection}
    return found


def _zeroed(
    group: str, prefix: str, training: Parameters, shares: tuple[float, ...]
) -> dict[tuple[str, str], Parameters]:
    """All that is kept is optimized further."""
    found = {}
    for by in KEEP_BY:
        for share in shares:
            kept = 1 - share - 1e-5  # so that at least the share is zero
            selection = {**_selection(kept, "gain"), "granularity": "weight", "kept": kept, "keep_by": by}
            found[group, f"{prefix}{by} {share:g}"] = {**training, "selection": selection}
    return found


def _optimizers(mlp: Parameters) -> dict[tuple[str, str], Parameters]:
    found = {}
    for name, rate in RATES.items():
        falls = name in ("sgd", "momentum", "adam")
        training = {**mlp, "optimizer": name, "rate": rate, "falls": falls}
        selection = {**_selection(0.2, "gain"), "granularity": "neuron", "always": [OUTPUT["mlp-200"]]}
        found["optimizers", name] = training
        found["optimizers", f"{name}, selected"] = {**training, "selection": selection}
    return found


def job(options: argparse.Namespace, group: str, arm: str, seed: int, parameters: Parameters) -> Job:
    """One training."""
    setting = PRESETS[options.preset]
    # Of MNIST 55,000 images for training and 5,000 for validation.
    parts: dict[str, Any] = {"val_limit": 200} if options.preset == "smoke" else {"val_fraction": 1 / 12}
    config = {"data": data_section(options, setting.limit, **{"val_limit": None, **parts})}
    name = f"s{seed}-{group}-{arm}".replace(", ", "-").replace(" ", "-")
    # Seconds that are compared are not those of an equal training that ran beside others.
    alone = {"alone": True} if is_timed(group, arm) else {}
    parameters = {"trial": name, "seed": seed, **alone, **parameters}
    return Job(name, "selection_runs:run_selection", config, parameters, (seed,))
