"""Networks read off a search whose structure and weights depend on one lambda, without a step of an optimizer."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from nni_bayes_nas.compression.hyper_variational import expected_log_likelihood
from nni_bayes_nas.config import Config
from nni_bayes_nas.experiment.data import DataSplits
from nni_bayes_nas.experiment.pruned import calibration, every_batch, log_likelihood, look_at, trained_on
from nni_bayes_nas.experiment.retrained import save
from nni_bayes_nas.layers.normalization import recalibrate
from nni_bayes_nas.layers.variational import collect_kl


def joint_rows(
    strategy: Any,
    architectures: list[dict[str, Any]],
    data: DataSplits,
    config: Config,
    seed: int,
    directory: Path,
    tuning: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[dict[str, Any]]:
    """The derived network at every lambda with its weights there, and with ever fewer of them.

    Structure and weights as functions of lambda are left in model.pt, the networks of the curves in networks/.

    Args:
        strategy: The one that has searched; its weights depend on lambda.
        architectures: Rows of what was read off.
        data: Classes.
        config: The configuration; section `compress` says how networks are pruned.
        seed: Of draws.
        directory: Of the trial.
        tuning: Inside it networks are trained further: what is cut, and with `compress.posterior_finetune_epochs` what
            was read off, by the bound.

    Returns:
        By lambda a row as of `nni-bayes-nas compress`, with the "prior" of the weights, "choices", "params" and
        "structure_kl", -log p of the architecture: with it "objective" is the bound of q(weights) and the one
        architecture that was read off, of whose law it has no part; "law_kl", the divergence of that.
        "posterior_finetuned" as there, with its "seconds".
    """
    bayes, structure, rows = strategy.bayes, strategy.structure, []
    module = strategy.oneshot_module
    for found in architectures:
        lam = found["lambda"]
        if lam is None:
            continue
        torch.manual_seed(seed)
        network = strategy.materialize(lam, found["choices"])
        inputs = calibration(data, next(network.parameters()).device)
        recalibrate(network, inputs)
        network.eval()
        total = expected_log_likelihood(network, every_batch(data.train), log_likelihood, calibration=inputs)
        with torch.no_grad():
            kl = float(torch.stack(list(collect_kl(network).values())).sum())
            law_kl = float(structure.divergence(structure.position(lam), bayes.prior, bayes.none_prior))
        structure_kl = module.surprise_of(found["choices"])
        price, of_structure = lam * bayes.kl_weights, lam * bayes.kl_structure * structure_kl
        terms = {
            "expected_log_likelihood": total,
            "kl": kl,
            "structure_kl": structure_kl,
            "law_kl": law_kl,
            "objective": total - price * kl - of_structure,
        }
        row = {"lambda": lam, "prior": bayes.weight_prior, "choices": found["choices"], "params": found["params"]}
        row |= {name: round(value, 3) for name, value in terms.items()}
        folder = directory / "networks"
        row |= look_at(network, f"lambda{lam}", data, config.compress, seed, folder, tuning)
        if config.compress.posterior_finetune_epochs:
            started = time.perf_counter()
            terms = trained_on(network, price, data, config.compress, seed, inputs, tuning)
            terms["objective"] -= of_structure
            more = look_at(network, f"lambda{lam}-trained-on", data, config.compress, seed, folder, tuning)
            more["seconds"] = time.perf_counter() - started
            row["posterior_finetuned"] = {**{name: round(value, 3) for name, value in terms.items()}, **more}
        rows.append(row)
    save(strategy.searched, data, directory)
    return rows
