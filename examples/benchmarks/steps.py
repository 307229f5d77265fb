"""The arms of `search_step.py`: searches of one space, run block by block, and what a block takes."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from nni.nas.evaluator.pytorch import Classification, DataLoader  # noqa: E402
from nni.nas.execution import SequentialExecutionEngine  # noqa: E402
from nni.nas.hub.pytorch import DARTS as HubSpace  # noqa: E402
from nni.nas.hub.pytorch import NasBench201 as HubNasBench201  # noqa: E402
from nni.nas.space import RawFormatModelSpace  # noqa: E402
from nni.nas.strategy import DARTS  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from nni_bayes_nas.experiment.evaluator import quiet_lightning  # noqa: E402
from nni_bayes_nas.layers.memory_format import images_channels_last  # noqa: E402
from nni_bayes_nas.search_spaces.cell import CellSpace  # noqa: E402
from nni_bayes_nas.strategies import DirichletDARTS, HyperDARTS, RegularizedDARTS  # noqa: E402

SPACES: dict[str, tuple[Callable[..., Any], tuple[int, int, int]]] = {
    "digits": (CellSpace, (1, 8, 8)),
    "mnist": (CellSpace, (1, 28, 28)),
    "hub_darts": (HubSpace, (3, 32, 32)),
    "hub_nasbench201": (HubNasBench201, (3, 32, 32)),
}


@dataclass(frozen=True)
class Setting:
    """One space and how it is timed."""

    space: str
    arguments: dict[str, Any]
    batch_size: int
    blocks: int
    steps: int  # per block, after one that is not timed

    def build(self) -> Any:
        """A fresh instance of the space."""
        return SPACES[self.space][0](**self.arguments)


def hub(width: int, num_cells: int) -> dict[str, Any]:
    """Arguments of NNI's own DARTS space."""
    return {"width": width, "num_cells": num_cells, "dataset": "cifar"}


def ours(**options: Any) -> Callable[[int], Any]:
    """An arm of ours."""
    return lambda seed: RegularizedDARTS(l1=1e-3, penalty=0.1, arc_learning_rate=3e-4, seed=seed, **options)


def lambdas(n: int) -> Callable[[int], Any]:
    """An arm of ours with several values of lambda in a step, one pass for each; 0: one for every object."""
    options: dict[str, Any] = {"lambda_per": "step", "lambdas_per_step": n} if n else {"lambda_per": "object"}
    return lambda seed: HyperDARTS(one_hot_passes=0, warmup_epochs=0, seed=seed, **options)


def bayesian(**options: Any) -> Callable[[int], Any]:
    """An arm with a posterior over structures, at its defaults: a single level, draws for every object."""
    return lambda seed: DirichletDARTS(arc_learning_rate=3e-4, warmup_epochs=0, seed=seed, **options)


def theirs(seed: int) -> Any:
    """NNI's."""
    return DARTS(arc_learning_rate=3e-4, gradient_clip_val=5.0)


ARMS: dict[str, Callable[[int], Any]] = {
    "NNI": theirs,
    "NNI channels_last": theirs,
    "plain": ours(execution="plain"),
    "fused": ours(execution="fused"),
    "fused, bf16": ours(execution="fused"),
    "fused, order 2": ours(execution="fused", order=2),
    "fused, CUDA graphs": ours(execution="fused", cuda_graphs=True),
    "fused, bf16, CUDA graphs": ours(execution="fused", cuda_graphs=True),
    "fused, compiled": ours(execution="fused", compile=True),
    "Dirichlet": bayesian(),
    "Dirichlet, Gaussian weights": bayesian(weights="variational"),
    "Dirichlet, in turn": bayesian(accumulate=True),
    "Dirichlet, Gaussian weights, in turn": bayesian(weights="variational", accumulate=True),
    "Dirichlet, bilevel": bayesian(scheme="bilevel"),
    "Dirichlet, Gaussian weights, bilevel": bayesian(scheme="bilevel", weights="variational"),
    **{f"{n} lambda": lambdas(n) for n in (1, 2, 4)},
    "lambda per object": lambdas(0),
}


class Stopwatch(pl.Callback):
    """Seconds of every training step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Before the step."""
        self._started = now()

    def on_train_batch_end(self, *_: Any) -> None:
        """After the step."""
        self.seconds.append(now() - self._started)


class Search:
    """One arm on its own supernet, run block by block."""

    def __init__(self, arm: str, setting: Setting, seed: int, device: str) -> None:
        torch.manual_seed(seed)
        data = dataset(setting)
        strategy = ARMS[arm](seed)
        self.watch = Stopwatch()
        evaluator = Classification(
            num_classes=10,
            train_dataloaders=DataLoader(data, batch_size=setting.batch_size),
            val_dataloaders=DataLoader(data, batch_size=setting.batch_size),
            max_epochs=0,
            accelerator=device,
            devices=1,
            callbacks=[self.watch],
            limit_val_batches=0,
            precision="bf16-mixed" if "bf16" in arm else "32-true",
            **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
        )
        strategy.initialize(RawFormatModelSpace(setting.build(), evaluator), SequentialExecutionEngine())
        mutated = strategy._mutated_model_space
        if arm == "NNI channels_last":
            mutated.model_space.register_forward_pre_hook(images_channels_last)
        self.trainer, self.module = mutated.evaluator.trainer, mutated.evaluator.module
        self.module.set_model(mutated.model_space)
        self.loaders = mutated.evaluator.train_dataloaders
        self.left = contextlib.ExitStack()
        if arm.startswith("fused"):
            self.left.enter_context(strategy.fast_passes(mutated.model_space))

    def block(self) -> float:
        """Median seconds of the steps of a block but the first."""
        self.watch.seconds.clear()
        self.trainer.fit_loop.max_epochs += 1
        self.trainer.fit(self.module, self.loaders)
        return statistics.median(self.watch.seconds[1:])

    def flops(self) -> int:
        """Floating point operations of a step, of convolutions and matrix products."""
        with FlopCounterMode(display=False) as counter:
            self.block()
        return int(counter.get_total_flops()) // len(self.watch.seconds)


def now() -> float:
    """Seconds, once the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def dataset(setting: Setting) -> TensorDataset:
    """The images of one block: the digits, or random ones."""
    n = setting.batch_size * (setting.steps + 1)
    if setting.space == "digits":
        digits = load_digits()
        index = torch.arange(n) % len(digits.target)
        images = torch.from_numpy(digits.images[:, None] / 16.0).float()
        return TensorDataset(images[index], torch.from_numpy(digits.target)[index])
    return TensorDataset(torch.randn(n, *SPACES[setting.space][1]), torch.arange(n) % 10)


def peak_mib(arm: str, setting: Setting, seed: int, device: str, threads: int) -> int:
    """Peak memory of a block of an arm, in MiB; on a CPU, call it in a process of its own."""
    quiet()
    torch.set_num_threads(threads)
    if device == "gpu":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated()
        search = Search(arm, setting, seed, device)
        search.block()
        search.left.close()
        return (torch.cuda.max_memory_allocated() - others) >> 20
    # What loading the libraries has taken for a moment is not the search's: Linux forgets the peak so far.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_kib("VmRSS")
    Search(arm, setting, seed, device).block()
    return (resident_kib("VmHWM") - before) >> 10


def resident_kib(name: str) -> int:
    """Resident memory of this process, at present ("VmRSS") or at most so far ("VmHWM"), in KiB; Linux alone."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def error_of_bf16(setting: Setting, seed: int, device: str) -> dict[str, float]:
    """Relative errors of a pass in bfloat16: of the loss, and of the gradients of structure and weights (norms).

    Both passes have the same weights, images and mixing weights, as a search begins with them.
    """
    search = Search("fused", setting, seed, device)
    module, net = search.module, search.module.training_module.model
    device_type = "cuda" if device == "gpu" else "cpu"
    module.to(device_type)
    batch = next(iter(search.loaders["train"] if isinstance(search.loaders, dict) else search.loaders))
    batch = batch["train"] if isinstance(batch, dict) else batch
    x, y = (part.to(device_type) for part in batch)
    structure, weights = module.arch_parameters(), [p for p in net.parameters() if p.requires_grad]
    found = []
    before = copy.deepcopy(net.state_dict())
    for low in (False, True):
        net.load_state_dict(before)
        module.binding.weights = module.structure.mean(None)
        with torch.autocast(device_type, torch.bfloat16, enabled=low):
            outputs = net.train()(x)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        loss = torch.nn.functional.cross_entropy(outputs.float(), y)
        gradients = torch.autograd.grad(loss, [*structure, *weights], materialize_grads=True)
        parts = gradients[: len(structure)], gradients[len(structure) :]
        flat = [torch.cat([g.flatten() for g in part]) for part in parts]
        found.append([loss.detach().reshape(1), *flat])
    names = ("loss", "gradient of the structure", "gradient of the weights")
    return {n: float((b - a).norm() / a.norm()) for n, a, b in zip(names, *found, strict=True)}


def peak_gflops(device: str, low: bool = False) -> float:
    """What the device reaches at most, in 10^9 operations per second: a product of large matrices, the best of ten.

    In single precision, or in bfloat16; with TF32 where convolutions have it.
    """
    n = 8192 if device == "gpu" else 2048
    a = torch.randn(n, n, device="cuda" if device == "gpu" else "cpu", dtype=torch.bfloat16 if low else torch.float32)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    best = float("inf")
    for _ in range(10):
        started = now()
        a @ a
        best = min(best, now() - started)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return 2 * n**3 / best / 1e9


def quiet() -> None:
    """Leave out what Lightning and NNI say of every start."""
    quiet_lightning()
    logging.getLogger("nni").setLevel(logging.ERROR)
