"""Our strategies on the spaces of NNI's own hub: they work on any Retiarii space, not on ours alone.

Every row is one strategy on one space at a small size: a search of two batches, the architectures at two lambda (the
ends of HyperDARTS' range; RegularizedDARTS searches once per price), and a fresh space frozen with each and run
forward. The images are random numbers: only whether it works is seen. A space that cannot be relaxed is refused by
name, and so is one without a double backward under the exact second order: then a row with the finite difference
("2fd") follows. No network; about ten minutes on two cores.

    python examples/02_plug_into_hub.py
    python examples/02_plug_into_hub.py --spaces DARTS NasBench201 --orders 2 --second-order finite_difference

The exit code is 1 if a row failed: a refusal by name is none.
"""

import argparse
import itertools
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from nni.nas.evaluator.pytorch import Classification, DataLoader  # noqa: E402
from nni.nas.execution import SequentialExecutionEngine  # noqa: E402
from nni.nas.hub import pytorch as hub  # noqa: E402
from nni.nas.space import RawFormatModelSpace  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402

from nni_bayes_nas.complexity.measure import count_parameters  # noqa: E402
from nni_bayes_nas.errors import SpaceError  # noqa: E402
from nni_bayes_nas.experiment.evaluator import quiet_lightning  # noqa: E402
from nni_bayes_nas.strategies import DirichletDARTS, HyperDARTS, RegularizedDARTS  # noqa: E402

CELLS = {"width": 4, "num_cells": 3, "dataset": "cifar"}
# Class of the hub -> its arguments at a small size, edge of the images.
SPACES: dict[str, tuple[dict[str, Any], int]] = {
    "DARTS": (CELLS, 16),
    "ENAS": (CELLS, 16),
    "NASNet": (CELLS, 16),
    "PNAS": (CELLS, 16),
    "AmoebaNet": (CELLS, 16),
    "NasBench201": ({"stem_out_channels": 4, "num_modules_per_stack": 1}, 16),
    "ProxylessNAS": ({"num_labels": 10, "width_mult": 0.25}, 32),
    "MobileNetV3Space": (
        {
            "num_labels": 10,
            "base_widths": (16, 16, 16, 16, 16, 24, 32, 32, 64),
            "width_multipliers": (0.5, 1.0),
            "expand_ratios": (1.0, 3.0),
            "depth_range": (1, 2),
        },
        32,
    ),
    "AutoformerSpace": (
        {"num_labels": 10, "img_size": 32, "search_embed_dim": (96, 128), "search_depth": (2, 3)},
        32,
    ),
    "ShuffleNetSpace": ({"num_labels": 10}, 64),
    "NasBench101": ({"stem_out_channels": 8, "num_stacks": 1, "num_modules_per_stack": 1}, 16),
}
STRATEGIES = {"HyperDARTS": HyperDARTS, "RegularizedDARTS": RegularizedDARTS, "DirichletDARTS": DirichletDARTS}
LAMBDAS = (1e-3, 100.0)
BATCH = 4


def fresh(space: str) -> Any:
    """A space that nobody has searched yet."""
    torch.manual_seed(0)
    return getattr(hub, space)(**SPACES[space][0])


def search(space: str, strategy: Any) -> None:
    """Two batches of search."""
    shape = (2 * BATCH, 3, SPACES[space][1], SPACES[space][1])
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.arange(2 * BATCH) % 10)
    evaluator = Classification(
        num_classes=10,
        optimizer=torch.optim.SGD,
        learning_rate=0.025,
        train_dataloaders=DataLoader(data, batch_size=BATCH),
        val_dataloaders=DataLoader(data, batch_size=BATCH),
        max_epochs=1,
        limit_val_batches=1,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
    )
    strategy(RawFormatModelSpace(fresh(space), evaluator), SequentialExecutionEngine())
    assert evaluator.trainer.fit_loop.total_batch_idx + 1 == 2


def architectures(space: str, kind: str, order: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The architectures at two lambda, as NNI samples."""
    if kind == "HyperDARTS":
        # Operations with a choice of width cannot carry one lambda per object: all spaces take one per pass.
        strategy: Any = HyperDARTS(lambda_range=LAMBDAS, lambda_per="step", warmup_epochs=0, **order)
        search(space, strategy)
        yield from (strategy.export(lam) for lam in LAMBDAS)
    elif kind == "DirichletDARTS":
        strategy = DirichletDARTS(lambda_range=LAMBDAS, complexity="penalty", draw_per="step", warmup_epochs=0)
        search(space, strategy)
        yield from (strategy.export(lam) for lam in LAMBDAS)
    else:
        for lam in LAMBDAS:
            strategy = RegularizedDARTS(penalty=lam, arc_learning_rate=0.05, **order)
            search(space, strategy)
            yield strategy.export()


def row(space: str, kind: str, order: dict[str, Any]) -> dict[str, Any]:
    """Seconds and the sizes of the derived networks, or why there are none."""
    started = time.perf_counter()
    sizes, why = [], ""
    try:
        for choices in architectures(space, kind, order):
            network = fresh(space).freeze(choices)
            edge = SPACES[space][1]
            assert network(torch.zeros(2, 3, edge, edge)).shape == (2, 10)
            sizes.append(count_parameters(network))
    except SpaceError as error:
        why = f"refused: {error}"
    except Exception as error:
        why = f"FAILED: {type(error).__name__}: {error}"
    return {"seconds": round(time.perf_counter() - started, 1), "sizes": sizes, "why": why}


def main() -> int:
    """Print a row per space, strategy and order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES), metavar="SPACE")
    parser.add_argument("--orders", nargs="+", type=int, choices=(1, 2), default=[1, 2], metavar="ORDER")
    parser.add_argument("--second-order", choices=("exact", "finite_difference"), default="exact")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quiet_lightning()
    logging.getLogger("nni").setLevel(logging.CRITICAL)
    started, failed = time.perf_counter(), 0
    print(f"{'space':<18}{'strategy':<18}{'order':>5}{'seconds':>9}{'params, small lambda':>22}{'large lambda':>14}")
    for space, kind, order in itertools.product(options.spaces, STRATEGIES, options.orders):
        if kind == "DirichletDARTS" and order == 2:  # which it has not
            continue
        methods = [options.second_order]
        for method in methods:
            found = row(space, kind, {"order": order, "second_order": method})
            failed += found["why"].startswith("FAILED")
            if order == 2 and "double backward" in found["why"]:
                methods.append("finite_difference")
            name = "2fd" if order == 2 and method == "finite_difference" else str(order)
            sizes = "".join(f"{size:>{width}}" for size, width in zip(found["sizes"], (22, 14), strict=False))
            print(f"{space:<18}{kind:<18}{name:>5}{found['seconds']:>9}{sizes}  {found['why']}".rstrip(), flush=True)
    print(f"{time.perf_counter() - started:.0f} seconds, {failed} rows failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
