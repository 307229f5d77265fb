"""One architecture: a choice for every label of a space, as an NNI sample."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nni_bayes_nas.errors import ConfigError, SpaceError

_SLOT = re.compile(r"^(?P<cell>.*)/(?P<kind>op|input)_(?P<node>\d+)_(?P<slot>\d+)$")


@dataclass(frozen=True)
class Architecture:
    """Choices by label, in NNI's form: `{"cell0/op_2_0": "conv_3x3", "cell0/input_2_0": [1], "layer0": "conv_1x1"}`.

    Raises:
        ConfigError: If the choices are not a mapping from labels.
    """

    choices: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.choices, Mapping) or not all(isinstance(label, str) for label in self.choices):
            raise ConfigError(f"an architecture must be a mapping from labels to choices, got {self.choices!r}.")

    def canonical(self) -> dict[str, Any]:
        """Choices with plain keys, sorted; the slots of a cell's node are ordered by (input, operation).

        NNI's sample numbers the edges that a node keeps, but their sum does not know an order.
        """
        plain = {str(label): choice for label, choice in self.choices.items()}
        nodes: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        for label in list(plain):
            if match := _SLOT.match(label):
                slots = nodes.setdefault((match["cell"], match["node"]), {})
                slots.setdefault(int(match["slot"]), {})[match["kind"]] = plain[label]
        for (cell, node), slots in nodes.items():
            if all(set(slot) == {"op", "input"} for slot in slots.values()):
                ordered = sorted(slots.values(), key=lambda slot: json.dumps([slot["input"], slot["op"]]))
                for number, slot in zip(sorted(slots), ordered, strict=True):
                    plain[f"{cell}/op_{node}_{number}"] = slot["op"]
                    plain[f"{cell}/input_{node}_{number}"] = slot["input"]
        return dict(sorted(plain.items()))

    @property
    def takes_an_input_twice(self) -> bool:
        """Whether two slots of a cell's node have the same input, which no search of ours finds."""
        slots = ((match, choice) for label, choice in self.choices.items() if (match := _SLOT.match(str(label))))
        taken = [(m["cell"], m["node"], json.dumps(choice)) for m, choice in slots if m["kind"] == "input"]
        return len(set(taken)) < len(taken)

    @property
    def key(self) -> str:
        """Equal for two architectures exactly if they are the same network; 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The canonical choices as JSON."""
        return json.dumps(self.canonical(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: If the text is not a JSON object.
        """
        try:
            return cls(json.loads(text))
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"an architecture must be a JSON object of choices, but reading it failed: {error}."
            ) from error

    def check(self, space: Any) -> None:
        """Check against an NNI model space.

        Raises:
            SpaceError: If a label is missing, unknown, or has a choice that the space does not offer.
        """
        known, given = {str(label) for label in space.simplify()}, {str(label) for label in self.choices}
        if missing := sorted(known - given):
            raise SpaceError(f"an architecture must choose every label of its space, but {missing[:3]} are missing.")
        if unknown := sorted(given - known):
            raise SpaceError(f"an architecture may choose labels of its space only, but {unknown[:3]} are unknown.")
        error = space.check_contains(self.as_offered(space))
        if error is not None:
            raise SpaceError(f"an architecture must take choices that its space offers: {error}")

    def build(self, space: Any) -> Any:
        """The network of this architecture: `space`, an NNI model space, frozen.

        Raises:
            SpaceError: As `check`.
        """
        self.check(space)
        return space.freeze(self.as_offered(space))

    def as_offered(self, space: Any) -> dict[str, Any]:
        """The choices as the space has them: options that are tuples are lists in files."""
        found = dict(self.choices)
        for label, mutable in space.simplify().items():
            options = {
                json.dumps(value, default=str): value
                for value in getattr(mutable, "values", ())
                if isinstance(value, tuple)
            }
            if options and label in found:
                choice, several = found[label], hasattr(mutable, "n_chosen")
                if several and isinstance(choice, list):
                    found[label] = [options.get(_text(value), value) for value in choice]
                else:
                    found[label] = options.get(_text(choice), choice)
        return found


def _text(choice: Any) -> str:
    """That of a list, which files have in the place of a tuple; of others "", which is that of no option."""
    return json.dumps(choice, default=str) if isinstance(choice, list) else ""
