"""What a predicted network is compared with, at no more connections: several tries of each."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any, Literal

from torch import nn

from nni_bayes_nas.coercion import require
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.prediction.growth import grow
from nni_bayes_nas.prediction.inner_search import strongest
from nni_bayes_nas.prediction.low_rank import Factors, LowRank, sizes_within
from nni_bayes_nas.prediction.many import Training
from nni_bayes_nas.prediction.random_nets import most_parameters, random_net, relevant_net
from nni_bayes_nas.prediction.relevance import order_of_features
from nni_bayes_nas.prediction.sparse_architecture import SparseArchitecture, fewest_connections, of_columns
from nni_bayes_nas.prediction.sparse_net import dense
from nni_bayes_nas.prediction.tasks import TaskData
from nni_bayes_nas.prediction.tokens import Vocabulary
from nni_bayes_nas.prediction.training import (
    RATES,
    Trained,
    WholeData,
    connections,
    measured,
    seeds_of,
    train_module,
    train_together,
)

Baseline = Literal["random", "relevance", "snip", "magnitude", "adanet", "low_rank", "dense"]
BASELINES: tuple[Baseline, ...] = ("random", "relevance", "snip", "magnitude", "adanet", "low_rank", "dense")


def baseline(
    name: Baseline,
    data: WholeData,
    budget: int,
    how: Training,
    *,
    tries: int,
    vocabulary: Vocabulary,
    deepest: tuple[int, ...],
    seed: int,
    penalty: float = 1e-3,
    sizes: Sequence[tuple[int, ...]] | None = None,
) -> list[Trained]:
    """Several networks of a kind, trained. Sizes repeat where there are not as many within the budget.

    random: connections at random, of random depth and widths, of as many connections as the budget has where any can.
    relevance: the same, but rather of the features that come first in their order, which is all that a meta-model needs
    to know of data to do as well. snip: of dense networks
    those connections stay that a loss is most sensitive to at the start (Lee, Ajanthan & Torr, 2019). magnitude: those
    that are largest after training; then they are trained anew. Of both the first try prunes `deepest`, where the
    budget can afford its units, the others networks of random depth and widths. adanet: `grow`. low_rank: `LowRank`;
    both have at most as many parameters, biases among them, as the largest network within the budget. dense: all
    connections of `deepest`, whatever the budget; its tries have the rate of `how`, .3 and .1 of it in turn.

    Seconds are those of finding and training.

    Args:
        name: See above.
        data: All of it; its test objects are not looked at.
        budget: Connections at most.
        how: Of the training.
        tries: Networks.
        vocabulary: Of depths and widths.
        deepest: Widths of the dense network.
        seed: Of everything that is drawn.
        penalty: Of adanet, see `grow`.
        sizes: Of adanet and low_rank, see `sizes_of`; None: drawn.

    Raises:
        ConfigError: An unknown name, or a budget in which no network, or none of these sizes, fits.
    """
    require(name in BASELINES, "baselines", f"must be among {', '.join(BASELINES)}", name, "leave it out")
    seeds, k = seeds_of(seed, tries), data.n_classes
    drawing: Any = {"tries": tries, "vocabulary": vocabulary, "deepest": deepest, "seed": seed}
    if name in ("adanet", "low_rank"):
        sizes = sizes or sizes_of(name, data, budget, vocabulary, tries, random.Random(seed))
        pairs = list(zip(itertools.cycle(sizes), seeds, strict=False))
        most = most_parameters(data.n_features, k, budget, vocabulary)
        if name == "adanet":
            return [_grown(data, most, how, size, own, penalty) for size, own in pairs]
        for size in sizes:
            fits = Factors(*size).parameters(k) <= most
            require(fits, "sizes", f"must have at most {most} parameters", size, "take them from sizes_of")
        order = order_of_features(data.parts.x, data.parts.y)
        return [train_module(LowRank(order, Factors(*size), k, own), data, how, own) for size, own in pairs]
    started = time.perf_counter()
    nets = nets_of(name, data, budget, how, **drawing)
    searched = (time.perf_counter() - started) / tries
    if name == "dense":
        return _dense(nets, seeds, data, how)
    trained = train_together(nets, seeds, data, how)
    return [replace(one, seconds=round(one.seconds + searched, 3)) for one in trained]


def nets_of(
    name: Baseline,
    data: WholeData,
    budget: int,
    how: Training,
    *,
    tries: int,
    vocabulary: Vocabulary,
    deepest: tuple[int, ...],
    seed: int,
) -> list[SparseArchitecture]:
    """The networks that `baseline` trains of random, relevance, snip, magnitude or dense; its arguments."""
    n, k, generator = data.n_features, data.n_classes, random.Random(seed)
    if name == "dense":
        return [dense(n, k, deepest)] * tries
    nets = draw_nets(name, data.parts, k, budget, how, vocabulary, generator, seeds_of(seed, tries), widths=deepest)
    ranked = order_of_features(data.parts.x, data.parts.y).tolist() if name == "relevance" else None
    return nets if ranked is None else [of_columns(net, ranked) for net in nets]


def draw_nets(
    name: Baseline,
    parts: TaskData,
    n_classes: int,
    budget: int,
    how: Training,
    vocabulary: Vocabulary,
    generator: random.Random,
    seeds: Sequence[int],
    *,
    widths: tuple[int, ...] | None = None,
) -> list[SparseArchitecture]:
    """Networks of a kind of which nets are drawn before they are trained: random, relevance, snip or magnitude.

    Args:
        name: See `baseline`; inputs of "relevance" are ranks of features.
        parts: Of the data.
        n_classes: Of the data.
        budget: Connections at most.
        how: Of the training by which magnitudes are found.
        vocabulary: Of depths and widths.
        generator: Of depth, widths and connections.
        seeds: Of initial weights, one for each network.
        widths: Of the dense network that snip and magnitude prune first, where the budget can afford as many units;
            None: drawn, as of all others.
    """
    n = parts.x.shape[1]
    if name == "relevance":
        return [relevant_net(n, n_classes, budget, vocabulary, generator) for _ in seeds]
    nets = [random_net(n, n_classes, budget, vocabulary, generator) for _ in seeds]
    if name == "random":
        return nets
    if widths is not None and fewest_connections(widths, n_classes) <= budget:
        nets[0] = dense(n, n_classes, widths)
    return strongest(nets, parts, budget, seeds, how if name == "magnitude" else None)


def _dense(nets: list[SparseArchitecture], seeds: list[int], data: WholeData, how: Training) -> list[Trained]:
    """Side by side those that have the same rate."""
    found: dict[int, Trained] = {}
    for i, share in enumerate(RATES):
        if places := list(range(i, len(nets), len(RATES))):
            own = replace(how, learning_rate=how.learning_rate * share)
            same = train_together([nets[k] for k in places], [seeds[k] for k in places], data, own)
            found |= dict(zip(places, same, strict=True))
    return [found[i] for i in range(len(nets))]


def _grown(data: WholeData, most: int, how: Training, sizes: tuple[int, ...], seed: int, penalty: float) -> Trained:
    order, started = order_of_features(data.parts.x, data.parts.y), time.perf_counter()
    features, width = sizes
    module: nn.Module = grow(
        data.parts.x, data.parts.y, order, (features, width), data.n_classes, most, how, seed, penalty=penalty
    )
    return measured(module, data, connections(module), time.perf_counter() - started)


def sizes_of(
    name: Baseline, data: WholeData, budget: int, vocabulary: Vocabulary, n: int, generator: random.Random
) -> list[tuple[int, ...]]:
    """Up to n sizes, drawn, of networks with at most as many parameters as the largest network within the budget.

    Args:
        name: adanet: features that are seen, and the width, of which so many are seen that one, two or four subnetworks
            have so many parameters. low_rank: features, rank and hidden units, see `sizes_within`.
        data: Of which features and classes count.
        budget: Connections at most.
        vocabulary: Of the networks whose parameters count.
        n: How many.
        generator: Of the draw.

    Raises:
        ConfigError: Another name, or a budget in which none fits.
    """
    named = ("adanet", "low_rank")
    require(name in named, "sizes_of", f"must be of {' or '.join(named)}", name, "others have widths")
    k, most = data.n_classes, most_parameters(data.n_features, data.n_classes, budget, vocabulary)
    if name == "low_rank":
        return [astuple(one) for one in sizes_within(data.n_features, k, most, n, generator)]
    sizes: list[tuple[int, ...]] = []
    for width, parts in itertools.product((1, 2, 3, 4, 6, 8, 12, 16, 24, 32), (1, 2, 4)):
        features = min(data.n_features, (most // parts - width * k - k - width) // width)
        if features >= 2 and (features, width) not in sizes:
            sizes.append((features, width))
    if not sizes:
        raise ConfigError(f"no subnetwork of two features and {k} outputs has {most} parameters; raise the budget.")
    return generator.sample(sizes, min(n, len(sizes)))
