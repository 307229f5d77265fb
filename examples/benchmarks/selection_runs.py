"""One training of the benchmark of selection, as a job: network, optimizer and what is frozen by its parameters."""

from __future__ import annotations

import copy
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_bayes_nas.compression.networks import Stored
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.data import DataSplits, batches, load_data
from nni_bayes_nas.experiment.pruned import every_batch
from nni_bayes_nas.experiment.uncertainty import ensemble, scores
from nni_bayes_nas.optim import SGLD, ConstantSGD, PreconditionedSGLD, SelectiveOptimization

# Whose iterates are draws from the posterior, and how many of them predictions are averaged over.
_SAMPLERS, _DRAWS = ("sgld", "psgld", "mandt"), 10


def _mlp(sizes: tuple[int, ...], activation: Callable[[], nn.Module], n_inputs: int = 784) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(n_inputs, sizes[0])]
    for before, after in zip(sizes, (*sizes[1:], 10), strict=True):
        layers += [activation(), nn.Linear(before, after)]
    return nn.Sequential(*layers)


def _cnn() -> nn.Sequential:
    """Of the prototypes: two convolutions of 5x5, two linear layers; 80,202 parameters."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


def _normalized_cnn(width: int = 16) -> nn.Sequential:
    """Three convolutions of 3x3 with batch normalization, each twice as wide as the one before."""
    layers: list[nn.Module] = []
    for before, after in ((1, width), (width, 2 * width), (2 * width, 4 * width)):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width * 9, 10))


NETWORKS: dict[str, Callable[..., nn.Sequential]] = {
    "mlp-200": lambda: _mlp((200,), nn.ReLU),
    "mlp-200-tanh": lambda n_inputs=784: _mlp((200,), nn.Tanh, n_inputs),
    "mlp-300-100": lambda: _mlp((300, 100), nn.ReLU),
    "cnn": _cnn,
    "cnn-normalized": _normalized_cnn,
    "cnn-wide": lambda: _normalized_cnn(256),
}


def _optimizer(name: str, rate: float, n: int, seed: int) -> Callable[[Any], torch.optim.Optimizer]:
    return {
        "sgd": lambda p: torch.optim.SGD(p, rate),
        "momentum": lambda p: torch.optim.SGD(p, rate, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, rate, fused=True),
        "sgld": lambda p: SGLD(p, rate, n_objects=n, seed=seed),
        "psgld": lambda p: PreconditionedSGLD(p, rate, n_objects=n, seed=seed),
        "mandt": lambda p: ConstantSGD(p, rate, n_objects=n, gather=50, max_lr=rate),
    }[name]


class Pixels(nn.Module):
    """Every pixel standardized by the training data's mean and standard deviation of it, without constant ones.

    Weights of these never have a gradient, and a criterion that is blind to it would choose them.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        x = x.flatten(1)
        sd = x.std(0)
        self.live = (sd > 1e-6).nonzero().squeeze(1)
        self.mean, self.sd = x.mean(0)[self.live], sd[self.live]

    def forward(self, x: Tensor) -> Tensor:
        """`(n, ...)` to `(n, pixels that vary)`."""
        return (x.flatten(1)[:, self.live] - self.mean) / self.sd


def prepared(inputs: str, section: str) -> nn.Module:
    """What comes before the network: data are standardized as a whole, "raw" are between 0 and 1."""
    if inputs == "pixels":
        return _pixels(section)
    data = _data(section)
    return Stored(data.mean, data.sd) if inputs == "raw" else nn.Identity()


class Training(pl.LightningModule):
    """A classifier, its rate constant or falling in a straight line to nearly zero."""

    def __init__(
        self,
        net: nn.Sequential,
        make: Callable[[Any], torch.optim.Optimizer],
        falls: bool,
        shift: int,
        prepare: nn.Module,
    ) -> None:
        super().__init__()
        self.net, self.make, self.falls, self.shift = net, make, falls, shift
        self._prepare = [prepare]  # no part of what is trained

    def prepare(self, x: Tensor) -> Tensor:
        """Objects as the network sees them."""
        found: Tensor = self._prepare[0](x)
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        x, y = batch
        if self.shift:
            # Augmentation: the whole batch moved by some pixels.
            moves = torch.randint(-self.shift, self.shift + 1, (2,)).tolist()
            x = torch.roll(x, moves, dims=(2, 3))
        return F.cross_entropy(self.net(self.prepare(x)), y)

    def configure_optimizers(self) -> Any:
        """As the benchmark says."""
        optimizer = self.make(self.net.parameters())
        if not self.falls:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(1e-3, 1 - step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Draws(pl.Callback):
    """Networks along the second half of a training, evenly, the last one among them: draws where the optimizer draws.

    Args:
        n: How many.
    """

    def __init__(self, n: int) -> None:
        self.n, self.states = n, list[dict[str, Tensor]]()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep one, where it is time."""
        planned, step = int(trainer.estimated_stepping_batches), trainer.global_step
        every = max(1, planned // (2 * self.n))
        if (planned - step) % every == 0 and planned - step < every * self.n:
            net: Any = pl_module.net
            self.states.append({name: value.detach().clone() for name, value in net.state_dict().items()})


class Clock(pl.Callback):
    """Process time of a training, all that is done for it included, and what a wall clock says when all is computed."""

    def __init__(self) -> None:
        self.seconds = self.wall = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It begins."""
        self.began, self.wall_began = time.process_time(), time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """It ends."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds, self.wall = time.process_time() - self.began, time.perf_counter() - self.wall_began


@torch.no_grad()
def _scores(
    module: Training,
    data: DataSplits,
    prefix: str,
    parts: tuple[str, ...],
    states: list[dict[str, Tensor]] | None = None,
) -> dict[str, float]:
    """Of the network, or of the mean probabilities of some of its states, on parts of the data."""
    net, device = module.net, module.device
    own, found = copy.deepcopy(net.state_dict()), {}
    net.eval()
    for name in parts:
        part, drawn = getattr(data, name), list[Tensor]()
        for state in states or [own]:
            net.load_state_dict(state)
            pairs = [(net(module.prepare(x).to(device)).log_softmax(-1).cpu(), y) for x, y in every_batch(part)]
            drawn.append(torch.cat([p for p, _ in pairs]))
        of_part = scores(ensemble(drawn), torch.cat([y for _, y in pairs]))
        found |= {f"{prefix}{name}_{key}": of_part[key] for key in ("accuracy", "nll", "ece")}
    net.load_state_dict(own)
    return found


@functools.lru_cache(maxsize=1)
def _data(section: str) -> DataSplits:
    """Once for all trainings of a process."""
    return load_data(Config.from_dict({"data": json.loads(section)}).data)


@functools.lru_cache(maxsize=1)
def _pixels(section: str) -> Pixels:
    """Likewise."""
    return Pixels(_data(section).train[:][0])


class OfAllData(SelectiveOptimization):
    """Chooses by the gradient of all training data where it is, and by variances of the steps of the window."""

    def _choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        found, module = self._gathered(), cast(Training, pl_module)
        totals = [torch.zeros_like(p) for p in found.parameters.values()]
        loader: Any = trainer.train_dataloader
        n = len(loader.dataset)
        for x, y in batches(loader.dataset, 1000, seed=None):
            with torch.enable_grad():
                loss = F.cross_entropy(module.net(module.prepare(x)), y, reduction="sum") / n
                torch._foreach_add_(totals, list(torch.autograd.grad(loss, list(found.parameters.values()))))
        of_steps = torch._foreach_mul(totals, float(found.steps))
        found._sums |= {"g": list(of_steps), "|g|": list(torch._foreach_abs(of_steps))}
        super()._choose(trainer, pl_module)


def run_selection(
    config: Config, parameters: dict[str, Any], directory: Path, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """A training; its validation and test scores, process seconds, and what its selection says.

    Args:
        config: Its data.
        parameters: "network", "optimizer", "rate", "falls", "batch_size", "steps", "seed"; "selection", arguments of
            `SelectiveOptimization` or None, with "of_all_data" of `OfAllData`; "shift" of augmentation; "inputs", see
            `prepared`; "test": whether test data are looked at; "device": "cpu" if it is left out, or "gpu".
        directory: Not used.
        report: Called at the end.
    """
    seed = int(parameters["seed"])
    section = json.dumps(config.to_dict()["data"], sort_keys=True)
    data, prepare = _data(section), prepared(parameters.get("inputs", "standardized"), section)
    torch.manual_seed(seed)
    own = {"n_inputs": len(prepare.live)} if isinstance(prepare, Pixels) else {}
    net = NETWORKS[parameters["network"]](**own)
    size, steps = int(parameters["batch_size"]), int(parameters["steps"])
    make = _optimizer(parameters["optimizer"], float(parameters["rate"]), len(data.train), seed)
    module = Training(net, make, bool(parameters["falls"]), int(parameters.get("shift", 0)), prepare)
    clock, draws, callbacks = Clock(), Draws(_DRAWS), list[pl.Callback]()
    if parameters["optimizer"] in _SAMPLERS:
        callbacks.append(draws)
    selection = parameters.get("selection")
    kind = OfAllData if parameters.get("of_all_data") else SelectiveOptimization
    chosen = None if selection is None else kind(**selection, batch_size=size, seed=seed)
    if chosen is not None:
        callbacks.append(chosen)
    loader = batches(data.train, size, seed=seed)
    trainer = pl.Trainer(
        accelerator=parameters.get("device", "cpu"),
        devices=1,
        max_steps=steps,
        max_epochs=math.ceil(steps / len(loader)),
        callbacks=[*callbacks, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    module.to(trainer.strategy.root_device)  # Lightning has moved it back
    parts = ("val", "test") if parameters.get("test", True) else ("val",)
    found = _scores(module, data, "", parts)
    if draws.states:
        found |= _scores(module, data, "averaged_", parts, draws.states)
    report({"default": found["val_accuracy"], "epoch": trainer.current_epoch})
    result = {"default": found["val_accuracy"], **found, "process_seconds": clock.seconds, "seed": seed}
    result |= {"wall_seconds": clock.wall, "rate": float(parameters["rate"]), "steps": steps}
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, ConstantSGD):
            result["share_at_max_lr"] = optimizer.share_at_max_lr()
    if chosen is not None:
        said = chosen.freeze_report()
        counts = [sum(row[key] for row in said["layers"].values()) for key in ("parameters", "active")]
        kept = sum(int((p != 0).sum()) for p in net.parameters())
        result |= {"parameters": counts[0], "active": counts[1], "nonzero": kept}
        result |= {key: said[key] for key in ("macs", "milliseconds", "no_cache", "cache_bytes", "state_bytes")}
        result["frozen"] = [name for name, row in said["layers"].items() if row["active"] == 0]
        result["active_by_layer"] = {name: row["active"] for name, row in said["layers"].items()}
    return result
