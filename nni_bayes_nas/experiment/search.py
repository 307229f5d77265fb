"""One search: from a configuration to architectures read off the structure."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any

import nni.nas.evaluator.pytorch
import torch
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import RawFormatModelSpace
from torch import Tensor

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.bayes.posterior import Merged, merge
from nni_bayes_nas.complexity.measure import count_macs, count_parameters
from nni_bayes_nas.config import Config, SearchConfig
from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.experiment import evaluator as evaluation
from nni_bayes_nas.experiment.build import build_space, build_strategy, effective
from nni_bayes_nas.experiment.callbacks import EpochLog, last_terms, mean_over_loaders
from nni_bayes_nas.experiment.collapse_watch import CollapseWatch, stopped
from nni_bayes_nas.experiment.data import DataSplits, batches, halves, load_data_on, steps_per_epoch
from nni_bayes_nas.experiment.derived import SharedWeights
from nni_bayes_nas.experiment.deriving import best_of, by_perturbation
from nni_bayes_nas.experiment.joint import joint_rows
from nni_bayes_nas.experiment.packed import pack
from nni_bayes_nas.experiment.posterior_file import MERGED_AT_MOST, posterior_file
from nni_bayes_nas.experiment.record import write_json
from nni_bayes_nas.experiment.selection import freeze_report_of, selective_search
from nni_bayes_nas.experiment.step_counter import count_optimizer_steps
from nni_bayes_nas.experiment.stopwatch import Stopwatch
from nni_bayes_nas.experiment.tasks import evaluation_module, task_of
from nni_bayes_nas.layers.variational import weight_noise
from nni_bayes_nas.lockstep import Member
from nni_bayes_nas.variants import varied

_CURVE_POINTS = 33
_RANDOM_TRIES = 60
_NOISE_OF_BOUNDS = 0
_DRAWS_PER_SAMPLE = 50


def run_search(
    config: Config,
    parameters: dict[str, Any],
    directory: Path,
    report: Callable[[dict[str, Any]], None],
    meeting: tuple[Member, dict[str, Any]] | None = None,
    inspect: Callable[[Reader, list[dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Search, then read the architectures off; goes on from the checkpoint in `directory`, if there is one.

    Args:
        config: The configuration.
        parameters: Of the trial; "seed", "trial" and, where the search has some, "changes" are used.
        directory: Where checkpoint, metrics and architectures are written.
        report: Called after every epoch with the intermediate result.
        meeting: Of searches side by side: which member this one is, and what the strategies of all share.
        inspect: Called last, with the finished search and its architectures; it may change the weights.

    Returns:
        The trial's result: search, architectures, random architectures, curve; see DESIGN of the run folder.

    Raises:
        NumericsError: If a term of the loss is not finite.
    """
    started, watch = time.perf_counter(), Stopwatch()
    seed, changes = int(parameters["seed"]), parameters.get("changes") or {}
    whole, config = config, varied(config, changes)
    device = evaluation.pick_device(config.experiment.device)
    with watch.stage("data"):
        data = load_data_on(device, config.data, meeting and meeting[1])
    with watch.stage("building"):
        strategy = build_strategy(config, data, seed)
        if meeting is not None:
            strategy.beside(*meeting)
        evaluator = _evaluator(config, data, seed, directory, device, report, watch, strategy)
        strategy(RawFormatModelSpace(build_space(config, data, seed), evaluator), SequentialExecutionEngine())
    module = strategy.oneshot_module
    searched = time.perf_counter()
    if device == "gpu":
        module.to("cuda")  # Lightning has moved it back
    with watch.stage("reading"), count_optimizer_steps() as after:
        ended = stopped(directory)
        reader = Reader(config, data, strategy, seed, watch, ended["epoch"] if ended else None)
        # A search among others has one thread for itself, and all of them here.
        read = partial(reader.read, config.search)
        architectures, curve, random = read() if meeting is None else strategy.replica.in_turn(read)
        candidates = reader.candidates(parameters) if parameters.get("candidates") else []
        joint = strategy.lambda_weights is not None and data.task == "classification"
        rows = joint_rows(strategy, architectures, data, config, seed, directory, after.paused) if joint else []
    terms = mean_over_loaders({k: float(v) for k, v in module.trainer.callback_metrics.items()})
    if not terms:
        terms = last_terms(directory)
    axis, score = strategy.axis, task_of(data).val_score
    (directory / "architecture.json").write_text(Architecture(architectures[0]["choices"]).to_json(), encoding="utf-8")
    # Where it depends on lambda, that of the large end is the prior of a refinement.
    posterior = {"posterior": strategy.posterior().to_dict()} if axis is None or candidates else {}
    if posterior or strategy.bayesian:
        networks = list(reader.networks().values()) if reader.knows_networks else []
        write_json(directory / "posterior.json", posterior_file(strategy, architectures, networks))
    result = {
        "default": terms.get(score, 0.0),
        "search": {
            "id": str(parameters["trial"]).removeprefix("search-"),
            "strategy": config.strategy.name,
            "seed": seed,
            **({"changes": changes} if changes else {}),
            **({"stopped": ended} if ended else {}),
            "seconds": round(time.perf_counter() - started, 2),
            "reading_seconds": round(time.perf_counter() - searched, 2),
            "steps": int(module.trainer.current_epoch)
            * int(steps_per_epoch(data.train, config.search.structure_fraction, config.search.batch_size)),
            "optimizer_steps_after_search": after.steps,
            score: terms.get(score),
            "terms": terms,
            "lambda_range": None if axis is None else [axis.low, axis.high],
            **(_found(strategy.structure) if strategy.structure.observed else {}),
            "cost": strategy.cost_kind,
            "cost_kind": strategy.cost.kind,
            "device": device,
            **freeze_report_of(module.trainer),
        },
        "architectures": architectures,
        "random": random,
        "curve": curve,
        **posterior,
        **({"candidates": pack(candidates)} if candidates else {}),
        **({"compression": rows} if rows else {}),
        "config": effective(whole).to_dict(),
        "stage_seconds": watch.seconds,
    }
    if inspect is not None:
        inspect(reader, architectures)
    return result


def _evaluator(
    config: Config,
    data: DataSplits,
    seed: int,
    directory: Path,
    device: str,
    report: Callable[[dict[str, Any]], None],
    watch: Stopwatch,
    strategy: Any,
) -> Any:
    settings = config.search
    weights, structure = halves(data.train, settings.structure_fraction, seed)
    score = task_of(data).val_score

    def intermediate(terms: dict[str, Any]) -> None:
        kept = ("epoch", "entropy", "expected_cost_min_lambda", "expected_cost_max_lambda")
        report({"default": terms[score], **{k: terms[k] for k in kept if k in terms}})

    callbacks: list[Any] = [EpochLog(directory, "search", intermediate, _weight_rows, watch)]
    if settings.collapse != "ignore":  # before the log, which writes down what it finds
        callbacks.insert(0, CollapseWatch(directory, strategy, settings.collapse == "stop", seed))
    chosen = selective_search(config, seed, strategy.batches_per_step)
    callbacks += [] if chosen is None else [chosen]
    sampled = {"n_objects": len(weights) * strategy.batches_per_step, "noise_seed": seed}
    return nni.nas.evaluator.pytorch.Lightning(
        evaluation_module(data, settings, **sampled),
        evaluation.trainer(directory, settings.epochs, device, callbacks, precision=settings.precision, watch=watch),
        train_dataloaders=batches(weights, settings.batch_size, seed=seed),
        val_dataloaders={
            "structure": batches(structure, settings.batch_size, seed=seed + 1),
            "validation": batches(data.val, 256, seed=None),
        },
        fit_kwargs=evaluation.resume_arguments(directory),
    )


def _found(structure: Any) -> dict[str, Any]:
    """Whether the search found out what lambda costs, and between which values lambda decides."""
    points = structure.found
    return {"lambda_found": bool(points), "lambda_decides": [points[0][0], points[-1][0]] if points else None}


def _weight_rows(module: Any) -> list[dict[str, Any]]:
    return [{"weights": module.named_weights()}]


def _itself(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    return tensor


class Reader:
    """Reads architectures off a finished search and counts them on the networks themselves."""

    def __init__(
        self,
        config: Config,
        data: DataSplits,
        strategy: Any,
        seed: int,
        watch: Stopwatch,
        epochs: int | None = None,
    ) -> None:
        self.strategy = strategy
        self.watch = watch
        self.shape = data.shape
        self.space = build_space(config, data, seed)
        self.isomorphism_key = getattr(self.space, "isomorphism_key", None)
        for tensor in (*self.space.parameters(), *self.space.buffers()):
            # NNI copies what it freezes, which takes most of the time: sizes do not depend on weights.
            tensor.__deepcopy__ = partial(_itself, tensor)
        calibration = halves(data.train, config.search.structure_fraction, seed)[0]
        self.shared = SharedWeights(strategy, calibration, data.val, epochs)
        self.score = task_of(data).score
        self.generator = torch.Generator().manual_seed(seed)
        self._one_hot: dict[str, float] = {}
        self._sizes: dict[str, dict[str, Any]] = {}
        self._networks: dict[float | None, dict[Hashable, Merged]] = {}

    def read(self, wanted: SearchConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """Architectures at the lambda that are asked for, sizes on the grid, random architectures."""
        architectures = [self.derived(lam, wanted) for lam in self.strategy.lambdas(wanted.lambdas)]
        architectures += self.sampled(wanted.samples, architectures)
        curve = self.curve() if self.strategy.axis is not None else []
        return architectures, curve, self.matched_random(architectures, wanted.random)

    def size(self, choices: dict[str, Any]) -> dict[str, Any]:
        """Parameters and multiply-accumulates of the network; its milliseconds where the search has a latency table."""
        architecture = Architecture(choices)
        if architecture.key not in self._sizes:
            with self.watch.stage("counting"):
                network = architecture.build(self.space)
                size = {"params": count_parameters(network), "macs": count_macs(network, self.shape)}
            if self.strategy.latency_table is not None:
                size["latency"] = self.strategy.predicted_cost("latency", choices)
            self._sizes[architecture.key] = size
        return self._sizes[architecture.key]

    def modelled_size(self, choices: dict[str, Any]) -> dict[str, Any]:
        """The same, without building the network where the model of the cost is exact, and so equal to the count."""
        key, costs = Architecture(choices).key, ("params", "macs")
        if key in self._sizes or any(self.strategy.cost_of(kind).kind != "exact" for kind in costs):
            return self.size(choices)
        size: dict[str, Any] = {kind: round(self.strategy.predicted_cost(kind, choices)) for kind in costs}
        if self.strategy.latency_table is not None:
            size["latency"] = self.strategy.predicted_cost("latency", choices)
        return size

    def identity(self, choices: dict[str, Any]) -> str:
        """Equal for architectures that compute the same, as far as the space knows."""
        return Architecture(choices).key if self.isomorphism_key is None else str(self.isomorphism_key(choices))

    def candidates(self, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """The most probable architectures, with their sizes: "candidates" of them, of at most "max_params" parameters.

        Of a strategy over lambda those of its lowest lambda, where size costs least.

        Raises:
            SpaceError: None of the most probable ones is so small.
        """
        wanted, most, rows = int(parameters["candidates"]), parameters.get("max_params"), []
        by_form = itertools.islice(self.strategy.posterior().by_probability(), MERGED_AT_MOST)
        # In a large space log q is that of a network's forms among those that are looked at.
        for one in by_form if self.isomorphism_key is None else self.networks().values():
            size = self.modelled_size(one.choices)
            if most is None or size["params"] <= most:
                rows.append({"choices": Architecture(one.choices).canonical(), "log_prob": one.log_prob, **size})
            if len(rows) == wanted:
                break
        if not rows:
            raise SpaceError(
                f"refine.max_params must leave architectures, but of the {MERGED_AT_MOST} most probable none "
                f"has at most {most} parameters; raise it, or search with a cost penalty."
            )
        return rows

    @property
    def knows_networks(self) -> bool:
        """Whether the space says which architectures compute the same, and has few enough to list them all."""
        few: bool = self.strategy.posterior().log_count <= math.log(MERGED_AT_MOST)
        return self.isomorphism_key is not None and few

    def networks(self, lam: float | None = None) -> dict[Hashable, Merged]:
        """By `identity`, the networks of the 20,000 most probable architectures at lambda, the most probable first."""
        if lam not in self._networks:
            looked_at = itertools.islice(self.strategy.posterior(lam).by_probability(), MERGED_AT_MOST)
            self._networks[lam] = merge(looked_at, self.identity)
        return self._networks[lam]

    def log_prob(self, choices: dict[str, Any], lam: float | None = None) -> float:
        """log q at lambda, in nats: of all architectures that compute the same, as far as the space knows.

        Where there is not `knows_networks`: of this one alone.
        """
        if not self.knows_networks:
            return float(self.strategy.posterior(lam).log_prob(choices))
        found = self.networks(lam).get(self.identity(choices))
        return -math.inf if found is None else found.log_prob

    def one_hot_score(self, choices: dict[str, Any], lam: float | None = None) -> float:
        """Validation score of an architecture with the weights of the search at lambda."""
        key = Architecture(choices).key + ("" if self.strategy.lambda_weights is None else f" {lam}")
        if key not in self._one_hot:
            self.strategy.settle(lam)
            self._one_hot[key] = self.shared.one_hot(choices)[self.score]
        return self._one_hot[key]

    def chosen(self, lam: float | None, wanted: SearchConfig) -> dict[str, Any]:
        """The architecture at lambda, in the way that is asked for."""
        if wanted.derive == "best_of":

            def loss(choices: dict[str, Any]) -> float:
                # The bound per object: with the noise of the weights, the same for all, and what they cost.
                with torch.random.fork_rng(), weight_noise(self.shared.network, True):
                    torch.manual_seed(_NOISE_OF_BOUNDS)
                    task = self.shared.one_hot(choices)["loss"]
                return float(task + self.strategy.oneshot_module.divergence_of(choices))

            return best_of(self.strategy.posterior(lam), wanted.derive_draws, loss, self.generator)
        if wanted.derive == "perturbation":
            structure = self.strategy.structure
            with torch.no_grad():
                weights = structure.mean(lam, self.shared.temperature)
                pruned = structure.pruned_pairs()
                return by_perturbation(structure.units, weights, lambda w: self.shared.mixed(w)["loss"], pruned)
        return dict(self.strategy.export(lam))

    def derived(self, lam: float | None, wanted: SearchConfig) -> dict[str, Any]:
        """The architecture at lambda, and what the search knows of it without another optimizer step."""
        choices = Architecture(self.chosen(lam, wanted)).canonical()
        self.strategy.settle(lam)
        return {
            "lambda": lam,
            "origin": wanted.derive if lam is None else "lambda",
            "choices": choices,
            "log_prob": self.log_prob(choices, lam),
            **self.size(choices),
            "price": self.shared.price(lam),
            f"mixture_{self.score}": self.shared.mixture(lam)[self.score],
            f"one_hot_{self.score}": self.one_hot_score(choices, lam),
        }

    def sampled(self, n: int, derived: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`n` architectures of the posterior, in the order in which they are drawn; none twice, and none of `derived`.

        Where the space says which compute the same, these are one, and "log_prob" is that of all their forms.
        Where draws bring nothing new for long, the most probable ones that are left stand in for them.
        """
        if not n:
            return []
        q, taken = self.strategy.posterior(), {self.identity(row["choices"]) for row in derived}
        drawn = q.sample(_DRAWS_PER_SAMPLE * n, self.generator)
        rows: list[dict[str, Any]] = []
        for choices in itertools.chain(drawn, (one.choices for one in q.by_probability())):
            if (identity := self.identity(choices)) in taken:
                continue
            taken.add(identity)
            row = {"lambda": None, "origin": "sample", "choices": Architecture(choices).canonical()}
            known = {"log_prob": self.log_prob(choices), f"one_hot_{self.score}": self.one_hot_score(choices)}
            rows.append({**row, **self.size(choices), **known})
            if len(rows) == n:
                break
        return rows

    @torch.no_grad()
    def curve(self) -> list[dict[str, Any]]:
        """Size of the architecture at every point of a grid of lambda, as read off: no sorting, no projection."""
        axis, structure, rows = self.strategy.axis, self.strategy.structure, []
        for i, lam in enumerate(axis.grid(_CURVE_POINTS)):
            size = self.modelled_size(self.strategy.export(lam))
            expected = float(structure.expected_cost(self.strategy.cost, structure.position(lam)))
            rows.append({"lambda": lam, "u": i / (_CURVE_POINTS - 1), **size, "expected_cost": expected})
        return rows

    def matched_random(self, architectures: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
        """`n` random architectures of the sizes of the derived ones, drawn without looking at the data.

        The sizes are those of the distinct derived networks, evenly spread over the list; for each, random
        architectures of that expected size are drawn and the nearest new one is taken.
        """
        structure, cost = self.strategy.structure, self.strategy.cost_of("params")
        distinct = {a["params"]: i for i, a in reversed(list(enumerate(architectures)))}
        targets = sorted(distinct, reverse=True)
        taken = {Architecture(a["choices"]).key for a in architectures}
        result: list[dict[str, Any]] = []
        for j in range(n):
            target = targets[round(j * (len(targets) - 1) / max(1, n - 1))]
            tilt = structure.tilt_for(cost, target)
            drawn = structure.random_samples(_RANDOM_TRIES, generator=self.generator, cost=cost, tilt=tilt)
            new = [choices for choices in drawn if Architecture(choices).key not in taken]
            if not new:
                continue
            nearest = min(new, key=lambda c: abs(self.strategy.predicted_cost("params", c) - target))
            choices = Architecture(nearest).canonical()
            taken.add(Architecture(choices).key)
            row = {"lambda": None, "origin": "random", "choices": choices, "log_prob": None}
            result.append({**row, **self.size(choices), "matches": distinct[target]})
        return result
