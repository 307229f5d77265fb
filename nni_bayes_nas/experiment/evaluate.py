"""The command `evaluate`: what a run's networks are worth when things go wrong, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nni_bayes_nas.coercion import closest
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.record import read_json, write_json
from nni_bayes_nas.experiment.retrained import Retraining, find_retraining, rebuild
from nni_bayes_nas.experiment.tasks import task_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nni_bayes_nas.experiment.attacks import Box
    from nni_bayes_nas.experiment.data import DataSplits

FILE = "evaluation.json"
_SCHEMA = 1
ATTACKS = ("fgsm", "pgd", "square", "noise")
_BATCH, _AT_ONCE, _READ_AT_ONCE = 32, 256, 4096
# A black-box attack that is stronger than one by gradients, by more than this many standard errors, tells of masking.
_MASKED = 2.0


@dataclass(frozen=True)
class Settings:
    """How networks are attacked and damaged.

    Attributes:
        epsilons: Largest changes of a pixel in the units of the stored data, and standard deviations of the noise; of
            vectors in standard deviations of a feature.
        damages: Shares of the edges that are missing.
        objects: Test objects that are attacked, drawn at random; all of them where there are fewer.
        steps: Of PGD.
        restarts: Of PGD.
        queries: Of the black-box attack.
        seed: Of every draw.
        attacks: Those of `ATTACKS` that are made.
    """

    epsilons: tuple[float, ...] = (0.05, 0.1, 0.2)
    damages: tuple[float, ...] = (0.1, 0.2, 0.3)
    objects: int = 256
    steps: int = 20
    restarts: int = 2
    queries: int = 100
    seed: int = 0
    attacks: tuple[str, ...] = ATTACKS

    def __post_init__(self) -> None:
        for name in self.attacks:
            if name not in ATTACKS:
                raise ConfigError(f"`--attacks` must be of {', '.join(ATTACKS)}, got {name}\n{closest(name, ATTACKS)}")
        for name in ("epsilons", "damages"):
            for value in getattr(self, name):
                if not (0 <= value < math.inf) or (name == "damages" and value > 1):
                    rule = "at least 0" if name == "epsilons" else "from 0 to 1"
                    raise ConfigError(f"`--{name}` must be {rule}, got {value:g}\nleave it out, or give another one")
        for name in ("objects", "steps", "restarts", "queries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`--{name}` must be at least 1, got {getattr(self, name)}\n256 objects are usual")


def evaluate(
    run: Path,
    settings: Settings | None = None,
    architectures: Sequence[str] = (),
    track: Callable[[list[Any]], Iterable[Any]] = iter,
) -> Path:
    """Attacks, damages and scores every retrained network of a run; writes `RUN/evaluation.json`.

    Args:
        run: The run folder.
        settings: How.
        architectures: Ids in summary.json; empty for all that were retrained.
        track: Wraps the list of networks, to show progress.

    Returns:
        The file.

    Raises:
        ConfigError: The user's mistake: no run, nothing retrained, no such architecture, a regression, data that are
            not those of the training. Nothing is written.
    """
    from nni_bayes_nas.experiment.data import load_data
    from nni_bayes_nas.experiment.ensembles import ensembles

    settings = settings or Settings()
    pairs = _pairs(run, architectures)
    # Architectures of equal choices share their networks.
    rows = list({str(retrained["name"]): (row, retrained) for row, retrained in reversed(pairs)}.values())[::-1]
    first = find_retraining(run, str(rows[0][0]["id"]), int(rows[0][1]["seed"]))
    if task_of(first.config.data).name != "classification":
        raise ConfigError(
            f"`{run}` must be of classes, which attacks and calibration are about, but its data are a regression\n"
            "its test scores are in the report"
        )
    data = load_data(first.config.data)
    _check_scale(first, data)
    box, (x, y) = box_of(data), data.test[:]
    networks, log_probs = [], {}
    for row, retrained in track(rows):
        retraining = find_retraining(run, str(row["id"]), int(retrained["seed"]))
        found, log_probs[str(retrained["name"])] = evaluated(retraining, (x, y), box, settings)
        networks.append({"architecture": row["id"], "trial": retrained["name"], "seed": retrained["seed"], **found})
    result = {
        "schema": _SCHEMA,
        "settings": asdict(settings),
        "images": data.test[:1][0].dim() == 4,
        "test_objects": len(y),
        "networks": networks,
        "ensembles": ensembles(pairs, log_probs, y, task_of(first.config.data).val_score),
    }
    write_json(run / FILE, result)
    return run / FILE


def _pairs(run: Path, architectures: Sequence[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(architecture, retraining)."""
    summary = read_json(run / "summary.json")
    every = summary.get("architectures", []) if isinstance(summary, dict) else []
    by_id = {str(row.get("id")): row for row in every}
    for name in architectures:
        if name not in by_id:
            raise ConfigError(f"`{run}` has no architecture `{name}`, {closest(name, by_id)}")
    chosen = [row for name, row in by_id.items() if not architectures or name in architectures]
    found = [(row, one) for row in chosen for one in row.get("retrain", []) if one.get("name")]
    if not found:
        # It says why: no run, no such architecture, or nothing retrained.
        find_retraining(run, next(iter(architectures or by_id), ""), None)
    return found


def _check_scale(first: Retraining, data: DataSplits) -> None:
    import torch

    saved = rebuild(first)[1]
    parts = ((saved.mean, data.mean), (saved.sd, data.sd))
    equal = all(ours.shape == theirs.shape and torch.allclose(ours, theirs) for ours, theirs in parts)
    if saved.num_classes != data.num_classes or not equal:
        raise ConfigError(
            f"data `{first.config.data.name}` must be those of the training, but their mean or classes are others\n"
            "evaluate where the data of the run are"
        )


def box_of(data: DataSplits) -> Box:
    """What attacked objects may be, in the units of the network's inputs.

    Pixels stay in [0, 1] where those of the training set do, else in their range; features in theirs.
    """
    import torch

    from nni_bayes_nas.experiment.attacks import Box

    images = data.train[:1][0].dim() == 4
    # In parts: what standardizes when it is taken out may not fit the memory as a whole.
    parts = (data.train[at : at + _READ_AT_ONCE][0] for at in range(0, len(data.train), _READ_AT_ONCE))
    axes = (0, 2, 3) if images else (0,)
    ranges = [(x.amin(axes, keepdim=images), x.amax(axes, keepdim=images)) for x in parts]
    low, high = torch.stack([a for a, _ in ranges]).amin(0), torch.stack([b for _, b in ranges]).amax(0)
    if not images:
        return Box(low, high, torch.ones(len(low)))
    low, high = low * data.sd + data.mean, high * data.sd + data.mean
    if float(low.min()) > -1e-3 and float(high.max()) < 1 + 1e-3:
        low, high = torch.zeros_like(low), torch.ones_like(high)
    return Box((low - data.mean) / data.sd, (high - data.mean) / data.sd, 1.0 / data.sd)


def evaluated(
    retraining: Retraining, test: tuple[Tensor, Tensor], box: Box, settings: Settings
) -> tuple[dict[str, Any], Tensor]:
    """Scores of a network on the test set, and its accuracy on attacked objects and with damage.

    Args:
        retraining: Gives the network.
        test: Objects and classes.
        box: What attacked objects may be.
        settings: How.

    Returns:
        The row, and the log-probabilities of the test objects, `(n, classes)`.
    """
    import torch

    from nni_bayes_nas.experiment import attacks, uncertainty

    network = rebuild(retraining)[0]
    with torch.no_grad():
        log_probs = torch.cat([network(part).log_softmax(-1) for part in torch.split(test[0], 256)])
    # Not the first ones: a test set may be in the order of its classes.
    order = torch.randperm(len(test[1]), generator=torch.Generator().manual_seed(settings.seed))[: settings.objects]
    x, y = (part[order] for part in test)

    def generator(stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(settings.seed * 1_000 + stream)

    noises = {name: generator(i) for i, name in enumerate(("pgd", "square", "noise"))}

    def pgd(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
        steps, restarts = settings.steps, settings.restarts
        return attacks.pgd(network, x, y, epsilon, box, steps=steps, restarts=restarts, generator=noises["pgd"])

    def black_box(x: Tensor, y: Tensor, epsilon: float) -> Tensor:
        return attacks.square(network, x, y, epsilon, box, queries=settings.queries, generator=noises["square"])

    every: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "fgsm": lambda x, y, epsilon: attacks.fgsm(network, x, y, epsilon, box),
        "pgd": pgd,
        # Squares are of images.
        **({"square": black_box} if x.dim() == 4 else {}),
        "noise": lambda x, y, epsilon: attacks.noise(x, epsilon, box, noises["noise"]),
    }

    kinds = {name: attack for name, attack in every.items() if name in settings.attacks}

    def accuracy(attack: Callable[[Tensor, Tensor, float], Tensor], epsilon: float) -> float:
        parts = zip(torch.split(x, _AT_ONCE), torch.split(y, _AT_ONCE), strict=True)
        return round(attacks.accuracy(network, torch.cat([attack(a, b, epsilon) for a, b in parts]), y), 5)

    attacked = {name: [accuracy(attack, epsilon) for epsilon in settings.epsilons] for name, attack in kinds.items()}
    row = {
        "scores": uncertainty.scores(log_probs, test[1]),
        "clean": round(attacks.accuracy(network, x, y), 5),
        "attacked": attacked,
        "masked": _masked(attacked, len(y)),
        "damaged": _damage(network, retraining, (x, y), settings),
    }
    return row, log_probs


def _masked(attacked: dict[str, list[float]], n: int) -> bool:
    """Whether the black-box attack is clearly stronger than the one by gradients, at some epsilon."""
    pairs = zip(attacked.get("square", []), attacked.get("pgd", []), strict=False)
    return any(black < white - _MASKED * math.sqrt(max(white * (1 - white), 1 / n) / n) for black, white in pairs)


def _damage(
    network: nn.Module, retraining: Retraining, test: tuple[Tensor, Tensor], settings: Settings
) -> list[float] | None:
    """Accuracy with a share of the edges missing, other ones in every batch; None for a network without edges."""
    import torch

    from nni_bayes_nas.experiment import attacks
    from nni_bayes_nas.experiment.build import build_space
    from nni_bayes_nas.experiment.damage import damaged, edges
    from nni_bayes_nas.experiment.retrained import saved_data

    data = saved_data(retraining.directory / "data.json")
    space = build_space(retraining.config, data, int(retraining.row["seed"]), retraining=True)
    names = edges(space, network)
    if not names:
        return None
    found = []
    for share in settings.damages:
        generator = torch.Generator().manual_seed(settings.seed * 1_000 + 4)
        with damaged(network, names, share, generator):
            found.append(round(attacks.accuracy(network, *test, batch_size=_BATCH), 5))
    return found
