"""The law of architectures: one distribution behind expected cost, log-probability, sampling and enumeration.

A space is a list of independent units. Operations are independent per choice; where a node keeps k of its
incoming edges, the set of edges is drawn by weighted sampling without replacement with the edges' mass outside
"none" as weights, and each kept edge draws its operation from what is left after "none" is excluded.
What is *derived* (argmax, top-k edges) is another thing: `derive`.

Probabilities of a unit are a tensor `(*batch, rows, width)` whose rows sum to one: one row for a `Choice` or a
`Subset`, a row per edge for a `Node`, whose last column is "none".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.bayes import subsets
from nni_bayes_nas.errors import ConfigError

Choices = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One of `options`, under `label`."""

    label: str
    options: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width of the probabilities."""
        return 1, len(self.options)


@dataclass(frozen=True)
class Subset:
    """`n_chosen` of `options`, without repetition, under `label`."""

    label: str
    options: tuple[Any, ...]
    n_chosen: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and width of the probabilities."""
        return 1, len(self.options)


@dataclass(frozen=True)
class Node:
    """A node of a cell: keeps `n_chosen` of its incoming edges, each with one of `operations`.

    The NNI sample names slot k of node i of cell `cell` as `cell/op_i_k` and `cell/input_i_k`.
    """

    cell: str
    index: int
    operations: tuple[str, ...]
    n_chosen: int

    @property
    def label(self) -> str:
        """Name of the node, `cell/index`."""
        return f"{self.cell}/{self.index}"

    @property
    def shape(self) -> tuple[int, int]:
        """Edges (node i has the i earlier states as inputs) and operations with "none"."""
        return self.index, len(self.operations) + 1

    def slots(self, kept: Sequence[tuple[int, int]]) -> Choices:
        """The NNI sample of kept (edge, operation index) pairs, slots ordered by edge."""
        sample: Choices = {}
        for slot, (edge, operation) in enumerate(sorted(kept)):
            sample[f"{self.cell}/op_{self.index}_{slot}"] = self.operations[operation]
            sample[f"{self.cell}/input_{self.index}_{slot}"] = [edge]
        return sample

    def kept(self, choices: Choices) -> list[tuple[int, int]]:
        """The (edge, operation index) pairs of an NNI sample, ordered by edge."""
        pairs = []
        for slot in range(self.n_chosen):
            chosen = choices[f"{self.cell}/input_{self.index}_{slot}"]
            edge = chosen[0] if isinstance(chosen, (list, tuple)) else chosen
            pairs.append((int(edge), self.operations.index(choices[f"{self.cell}/op_{self.index}_{slot}"])))
        return sorted(pairs)


Unit = Choice | Subset | Node


def _log(probs: Tensor) -> Tensor:
    """Logarithm that stays finite where a probability has underflowed."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()


def _log_edge_mass(probs: Tensor) -> Tensor:
    """Log-mass outside "none" of every edge, `(*batch, rows, width)` -> `(*batch, rows)`."""
    return _log(probs[..., :-1]).logsumexp(-1)


def _log_operations_given_kept(probs: Tensor) -> Tensor:
    return _log(probs[..., :-1]).log_softmax(-1)


def check_choices(units: Sequence[Unit], choices: Choices) -> None:
    """Refuse what is no architecture of the units; what it says beside them does not matter.

    Raises:
        ConfigError: A label that is missing, an option that there is not, or too many or too few of a choice.
    """

    def of(label: str, options: Sequence[Any], n: int = 1) -> Any:
        if label not in choices:
            raise ConfigError(f"an architecture must say what it has at {label!r}, got {', '.join(sorted(choices))}.")
        value = choices[label]
        chosen = value if isinstance(value, (list, tuple)) and value not in options else [value]
        if len(set(map(str, chosen))) != n or len(chosen) != n or any(one not in options for one in chosen):
            known = ", ".join(map(str, options))
            raise ConfigError(f"an architecture must have {n} of {known} at {label!r}, got {value!r}.")

    for unit in units:
        if isinstance(unit, Choice):
            of(unit.label, unit.options)
        elif isinstance(unit, Subset):
            of(unit.label, unit.options, unit.n_chosen)
        else:
            for slot in range(unit.n_chosen):
                of(f"{unit.cell}/op_{unit.index}_{slot}", unit.operations)
                of(f"{unit.cell}/input_{unit.index}_{slot}", range(unit.index))
            if len({edge for edge, _ in unit.kept(choices)}) < unit.n_chosen:
                raise ConfigError(f"an architecture must have {unit.n_chosen} different inputs at {unit.label!r}.")


def never(unit: Unit, probs: Tensor) -> Tensor:
    """Options that are never chosen, where probabilities `(rows, width)` are exactly 0; `(rows, options)`, bool."""
    return probs[:, : n_options(unit) // len(probs)] == 0


def marginals(unit: Unit, probs: Tensor) -> Tensor:
    """Probability that an option is part of the architecture.

    Args:
        unit: What is chosen.
        probs: `(*batch, rows, width)`.

    Returns:
        `(*batch, rows, options)`; a node's "none" is no option and has no column.
    """
    if isinstance(unit, Choice):
        return probs
    if isinstance(unit, Subset):
        return subsets.inclusion_probabilities(_log(probs), unit.n_chosen)
    kept = subsets.inclusion_probabilities(_log_edge_mass(probs), unit.n_chosen)
    return kept.unsqueeze(-1) * _log_operations_given_kept(probs).exp()


def sharpened(unit: Unit, log_probs: Tensor, temperature: float) -> Tensor:
    """Marginals of the law after every probability is raised to the power 1 / temperature.

    At temperature 1 it is `marginals`, towards 0 it is the derived architecture (`derive`): an edge's weight,
    sum_o p_o^(1 / temperature) over the operations other than "none", is then ruled by its best operation.

    Args:
        unit: What is chosen.
        log_probs: Logarithms of the probabilities, noise added to them or not, `(*batch, rows, width)`.
        temperature: In (0, 1].

    Returns:
        `(*batch, rows, options)`.
    """
    logits = log_probs / temperature
    if isinstance(unit, Choice):
        return logits.softmax(-1)
    if isinstance(unit, Subset):
        return subsets.inclusion_probabilities(logits, unit.n_chosen)
    logits = logits[..., :-1]
    kept = subsets.inclusion_probabilities(logits.logsumexp(-1), unit.n_chosen)
    return kept.unsqueeze(-1) * logits.softmax(-1)


def log_prob(unit: Unit, probs: Tensor, choices: Choices) -> Tensor:
    """Log-probability, in nats, of this unit's part of an architecture; `(*batch, rows, width)` -> `(*batch,)`."""
    if isinstance(unit, Choice):
        return _log(probs[..., 0, unit.options.index(choices[unit.label])])
    if isinstance(unit, Subset):
        value = choices[unit.label]
        chosen = value if isinstance(value, (list, tuple)) else [value]
        return subsets.log_prob(_log(probs[..., 0, :]), [unit.options.index(v) for v in chosen])
    pairs = unit.kept(choices)
    result = subsets.log_prob(_log_edge_mass(probs), [edge for edge, _ in pairs])
    given_kept = _log_operations_given_kept(probs)
    for edge, operation in pairs:
        result = result + given_kept[..., edge, operation]
    return result


def entropy(unit: Unit, probs: Tensor) -> Tensor:
    """Entropy of the unit under the law, in nats; `(*batch, rows, width)` -> `(*batch,)`."""
    if isinstance(unit, Choice):
        of_choice: Tensor = torch.special.entr(probs[..., 0, :]).sum(-1)
        return of_choice
    if isinstance(unit, Subset):
        return subsets.entropy(_log(probs[..., 0, :]), unit.n_chosen)
    log_mass, given_kept = _log_edge_mass(probs), _log_operations_given_kept(probs)
    per_edge = -(given_kept.exp() * given_kept).sum(-1)
    kept = subsets.inclusion_probabilities(log_mass, unit.n_chosen)
    return subsets.entropy(log_mass, unit.n_chosen) + (kept * per_edge).sum(-1)


def sample(unit: Unit, probs: Tensor, generator: torch.Generator | None = None) -> Choices:
    """One draw of the unit from unbatched probabilities `(rows, width)`."""
    probs = probs.detach()
    if isinstance(unit, Choice):
        return {unit.label: unit.options[subsets.sample(_log(probs[0]), 1, generator)[0]]}
    if isinstance(unit, Subset):
        return {unit.label: [unit.options[i] for i in subsets.sample(_log(probs[0]), unit.n_chosen, generator)]}
    given_kept = _log_operations_given_kept(probs)
    edges = subsets.sample(_log_edge_mass(probs), unit.n_chosen, generator)
    return unit.slots([(edge, subsets.sample(given_kept[edge], 1, generator)[0]) for edge in edges])


def samples(units: Sequence[Unit], probs: Sequence[Tensor], n: int, generator: torch.Generator) -> list[Choices]:
    """`n` draws of all units, from unbatched probabilities of each."""

    def one() -> Choices:
        parts = [sample(unit, p, generator) for unit, p in zip(units, probs, strict=True)]
        return {label: choice for part in parts for label, choice in part.items()}

    return [one() for _ in range(n)]


def column_of_none(unit: Unit) -> int | None:
    """Where the probability of no operation at all stands; None where there is none."""
    if isinstance(unit, Node):
        return -1
    return unit.options.index("none") if isinstance(unit, Choice) and "none" in unit.options else None


def prior_concentrations(unit: Unit, prior: float = 1.0, none: float | None = None) -> Tensor:
    """Concentrations of a Dirichlet prior, `(rows, width)`: equal but for that of "none", if one is given."""
    b = torch.full(unit.shape, prior, dtype=torch.float64)
    if none is not None and (column := column_of_none(unit)) is not None:
        b[:, column] = none
    return b


def derive(unit: Unit, probs: Tensor) -> Choices:
    """What DARTS reads off unbatched mean probabilities `(rows, width)`.

    A choice takes its most probable option; a node keeps the k edges whose best operation other than "none" is
    most probable (Liu, Simonyan & Yang, 2019, arXiv 1806.09055, section 2.4).
    """
    return best_response(unit, probs[:, :-1] if isinstance(unit, Node) else probs)


def enumerate_choices(unit: Unit) -> Iterator[Choices]:
    """Every part of an architecture that this unit can give, once each."""
    if isinstance(unit, Choice):
        yield from ({unit.label: option} for option in unit.options)
    elif isinstance(unit, Subset):
        yield from ({unit.label: list(chosen)} for chosen in itertools.combinations(unit.options, unit.n_chosen))
    else:
        for edges in itertools.combinations(range(unit.index), unit.n_chosen):
            for operations in itertools.product(range(len(unit.operations)), repeat=unit.n_chosen):
                yield unit.slots(list(zip(edges, operations, strict=True)))


def count(unit: Unit) -> int:
    """How many parts `enumerate_choices` gives."""
    if isinstance(unit, Choice):
        return len(unit.options)
    if isinstance(unit, Subset):
        return math.comb(len(unit.options), unit.n_chosen)
    return math.comb(unit.index, unit.n_chosen) * int(len(unit.operations) ** unit.n_chosen)


def named(unit: Unit, values: Tensor) -> dict[str, dict[str, float]]:
    """Values of the options, `(rows, options)` with or without "none", by label and option.

    The edges of a node are labelled `cell/node_edge`.
    """
    rows = values.detach().cpu().tolist()
    if isinstance(unit, Node):
        options = [*unit.operations, "none"][: values.shape[-1]]
        return {f"{unit.label}_{edge}": dict(zip(options, row, strict=True)) for edge, row in enumerate(rows)}
    return {unit.label: {str(option): value for option, value in zip(unit.options, rows[0], strict=True)}}


def one_hot(unit: Unit, choices: Choices) -> Tensor:
    """Marginals, 0 or 1, of an architecture; `(rows, options)`."""
    rows, width = unit.shape
    if isinstance(unit, Node):
        result = torch.zeros(rows, width - 1)
        for edge, operation in unit.kept(choices):
            result[edge, operation] = 1.0
        return result
    value = choices[unit.label]
    chosen = value if isinstance(unit, Subset) and isinstance(value, (list, tuple)) else [value]
    result = torch.zeros(rows, width)
    for option in chosen:
        result[0, unit.options.index(option)] = 1.0
    return result


def n_options(unit: Unit) -> int:
    """Length of the flattened marginals of a unit."""
    rows, width = unit.shape
    return rows * (width - 1) if isinstance(unit, Node) else rows * width


def best_response(unit: Unit, gain: Tensor) -> Choices:
    """The part of an architecture with the largest sum of gains over its options; `gain` is `(rows, options)`.

    Ties go to the first option.
    """
    if isinstance(unit, Choice):
        return {unit.label: unit.options[int(gain[0].argmax())]}
    if isinstance(unit, Subset):
        top = torch.argsort(gain[0], descending=True, stable=True)[: unit.n_chosen]
        return {unit.label: [unit.options[i] for i in sorted(top.tolist())]}
    best, operation = gain.max(-1)
    edges = torch.argsort(best, descending=True, stable=True)[: unit.n_chosen]
    return unit.slots([(int(edge), int(operation[edge])) for edge in edges])
