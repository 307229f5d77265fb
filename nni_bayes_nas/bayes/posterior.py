"""A posterior over architectures as an object: the one law of `law`, at the posterior-mean probabilities."""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nni_bayes_nas.bayes import law
from nni_bayes_nas.errors import ConfigError

_SCHEMA = 1
_KINDS: dict[str, type[Any]] = {"choice": law.Choice, "subset": law.Subset, "node": law.Node}
# Parts of an architecture that one unit may have where all of them are listed.
_MOST_PARTS = 200_000


@dataclass(frozen=True)
class Weighted:
    """An architecture and its log-probability, in nats."""

    choices: dict[str, Any]
    log_prob: float


@dataclass(frozen=True)
class Merged:
    """Architectures that are one network: the most probable of them, how many they are, and log q of them together."""

    choices: dict[str, Any]
    members: int
    log_prob: float

    @property
    def probability(self) -> float:
        """Of all of them together."""
        return math.exp(self.log_prob)


def merge(architectures: Iterable[Weighted], key: Callable[[dict[str, Any]], Hashable]) -> dict[Hashable, Merged]:
    """Classes of architectures by key, the most probable class first; a probability is the sum over its members.

    Args:
        architectures: The most probable first.
        key: Equal for architectures that are one.
    """
    classes: dict[Hashable, list[Weighted]] = defaultdict(list)
    for one in architectures:
        classes[key(one.choices)].append(one)
    found = {
        name: Merged(
            members[0].choices,
            len(members),
            float(torch.tensor([one.log_prob for one in members], dtype=torch.float64).logsumexp(0)),
        )
        for name, members in classes.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].log_prob))


class ArchitecturePosterior:
    """q(architecture).

    Units are independent; within a node, edges are drawn without replacement by their mass outside "none", and each
    kept edge draws its operation. Probabilities sum to one over the architectures of the space. What is *derived* from
    the mean is another thing than the most probable architecture: `derived`, `top_k`.

    Args:
        units: What is chosen, in a fixed order.
        probs: Mean probabilities, `(rows, width)` for each unit; rows sum to one.

    Raises:
        ConfigError: Shapes that do not fit, or rows that are no probabilities.
    """

    def __init__(self, units: Sequence[law.Unit], probs: Sequence[Tensor]) -> None:
        self.units = tuple(units)
        self.probs = tuple(p.detach().to(device="cpu", dtype=torch.float64) for p in probs)
        shapes = [tuple(p.shape) for p in self.probs]
        if shapes != [unit.shape for unit in self.units]:
            raise ConfigError(
                f"probabilities must be of the shapes of their units {[u.shape for u in self.units]}, got {shapes}."
            )
        for unit, p in zip(self.units, self.probs, strict=True):
            if not (bool((p >= 0).all()) and bool(((p.sum(-1) - 1).abs() < 1e-4).all())):
                raise ConfigError(
                    f"rows of probabilities must sum to one, but those of {unit.label!r} are {p.tolist()}."
                )

    # -- numbers ---------------------------------------------------------------------------------------------------

    def mean(self) -> dict[str, dict[str, float]]:
        """Mean probabilities by label and option; the edges of a node are labelled `cell/node_edge`."""
        result: dict[str, dict[str, float]] = {}
        for unit, probs in zip(self.units, self.probs, strict=True):
            result.update(law.named(unit, probs))
        return result

    def inclusion(self) -> dict[str, dict[str, float]]:
        """Probability that an option is part of the architecture, by label and option, as `mean` without "none"."""
        result: dict[str, dict[str, float]] = {}
        for unit, probs in zip(self.units, self.probs, strict=True):
            result.update(law.named(unit, law.marginals(unit, probs)))
        return result

    def probability(self, option: str, label: str, *, given_kept: bool = False) -> float:
        """Probability that an option, an operation say, is part of the architecture at a label, or at an edge.

        Args:
            option: Of the choice.
            label: Of the choice, or `cell/node_edge`.
            given_kept: P(operation | edge): given that the edge is kept; of a LayerChoice that is the same.

        Raises:
            ConfigError: A label or option that there is not.
        """
        found = self.inclusion()
        if label not in found:
            raise ConfigError(f"label must be one of {', '.join(sorted(found))}, got {label!r}.")
        if option not in found[label]:
            raise ConfigError(f"option of {label} must be one of {', '.join(found[label])}, got {option!r}.")
        return found[label][option] / (sum(found[label].values()) if given_kept else 1.0)

    def entropy(self) -> float:
        """Of the architecture, in nats; at most `log_count`."""
        return sum(float(law.entropy(unit, p)) for unit, p in zip(self.units, self.probs, strict=True))

    @property
    def log_count(self) -> float:
        """Logarithm of the number of architectures."""
        return sum(math.log(law.count(unit)) for unit in self.units)

    def log_prob(self, choices: dict[str, Any]) -> float:
        """Log-probability of an architecture, in nats; -inf where it has an option that is never chosen.

        Raises:
            ConfigError: It is none of the space.
        """
        law.check_choices(self.units, choices)
        if any(bool((law.never(unit, p) & (law.one_hot(unit, choices) > 0)).any()) for unit, p in self._parts()):
            return -math.inf
        return sum(float(law.log_prob(unit, p, choices)) for unit, p in self._parts())

    # -- architectures ---------------------------------------------------------------------------------------------

    def sample(self, n: int, generator: torch.Generator) -> list[dict[str, Any]]:
        """`n` independent draws; raises ConfigError for a number below 0."""
        if n < 0:
            raise ConfigError(f"n is a number of draws and must be at least 0, got {n}.")
        return law.samples(self.units, self.probs, n, generator)

    def derived(self) -> dict[str, Any]:
        """What DARTS reads off the mean: best operation of every edge, the k best edges of every node."""
        return self._joined(law.derive(unit, p) for unit, p in self._parts())

    def top_k(self, k: int) -> list[Weighted]:
        """The k most probable architectures, the most probable first; exact.

        Raises:
            ConfigError: k is not positive, or above the number of architectures.
        """
        if not 1 <= k <= round(math.exp(min(self.log_count, 60.0))):
            raise ConfigError(
                f"k must be from 1 to the number of architectures {math.exp(self.log_count):.0f}, got {k}."
            )
        return list(itertools.islice(self.by_probability(), k))

    def by_probability(self) -> Iterator[Weighted]:
        """All architectures whose probability is not 0, the most probable first.

        The best of a product of independent lists: after one come those that have the next part in one of the lists;
        which lists these may be is kept, so that each architecture comes once.
        """
        lists = [self._ranked(unit, p) for unit, p in self._parts()]

        def value(ranks: tuple[int, ...]) -> float:
            return sum(ranked[rank][0] for ranked, rank in zip(lists, ranks, strict=True))

        start = (0,) * len(lists)
        waiting = [(-value(start), start, 0)]
        while waiting:
            negative, ranks, first = heapq.heappop(waiting)
            parts = (ranked[rank][1] for ranked, rank in zip(lists, ranks, strict=True))
            yield Weighted(self._joined(parts), -negative)
            for i in range(first, len(lists)):
                if ranks[i] + 1 < len(lists[i]):
                    following = (*ranks[:i], ranks[i] + 1, *ranks[i + 1 :])
                    heapq.heappush(waiting, (-value(following), following, i))

    def merged(self, key: Callable[[dict[str, Any]], Hashable], limit: int = 100_000) -> dict[Hashable, Merged]:
        """Classes of architectures, isomorphic ones say, by key, the most probable first.

        Args:
            key: Equal for architectures that are one.
            limit: Architectures that may be listed.

        Raises:
            ConfigError: There are more.
        """
        if self.log_count > math.log(limit):
            raise ConfigError(
                f"classes need all architectures listed, at most {limit}, got {math.exp(self.log_count):.3g}; "
                "take those of top_k."
            )
        return merge(self.by_probability(), key)

    def _parts(self) -> Iterator[tuple[law.Unit, Tensor]]:
        return zip(self.units, self.probs, strict=True)

    @staticmethod
    def _joined(parts: Any) -> dict[str, Any]:
        return {label: choice for part in parts for label, choice in part.items()}

    @staticmethod
    def _ranked(unit: law.Unit, probs: Tensor) -> list[tuple[float, law.Choices]]:
        if law.count(unit) > _MOST_PARTS:
            raise ConfigError(
                f"at most {_MOST_PARTS} possibilities of one choice can be ranked, but {unit.label!r} has "
                f"{law.count(unit)}; sample instead."
            )
        never = law.never(unit, probs)
        rows = [
            (float(law.log_prob(unit, probs, part)), part)
            for part in law.enumerate_choices(unit)
            if not bool((never & (law.one_hot(unit, part) > 0)).any())
        ]
        return sorted(rows, key=lambda row: -row[0])

    # -- files -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain types that JSON has."""
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        units = [{"kind": kinds[type(unit)], **asdict(unit)} for unit in self.units]
        plain: dict[str, Any] = json.loads(json.dumps({"units": units}))
        return {"schema": _SCHEMA, **plain, "probs": [p.tolist() for p in self.probs]}

    @classmethod
    def from_dict(cls, read: Any) -> ArchitecturePosterior:
        """Read what `to_dict` gave.

        Raises:
            ConfigError: It is something else.
        """
        try:
            if read["schema"] != _SCHEMA:
                raise ValueError(f"schema {read['schema']}")
            units = []
            for row in read["units"]:
                values = {k: _tuples(v) for k, v in row.items() if k != "kind"}
                units.append(_KINDS[row["kind"]](**values))
            probs = [torch.tensor(p, dtype=torch.float64) for p in read["probs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"a posterior must be what to_dict gave, but reading it failed: {error}.") from error
        return cls(units, probs)


def _tuples(value: Any) -> Any:
    """Lists as tuples, those in them too: options are what a space has, and JSON has no tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
