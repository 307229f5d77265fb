"""The cell of NAS-Bench-201 (Dong & Yang, ICLR 2020, arXiv 2001.00326) in a network of any width and depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from nni.mutable import label_scope
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import Tensor, nn

from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.memory_format import channels_last

NODES = 4
EDGES = tuple((i, j) for j in range(1, NODES) for i in range(j))
"""(from, to), in the order of an arch string: by the node that an edge leads to."""

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""In the order of the paper."""

NASLIB_OPERATIONS = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
"""In the order of NASLib's indices: Identity, Zero, ReLUConvBN3x3, ReLUConvBN1x1, AvgPool1x1."""

NASLIB_EDGES = tuple(sorted(EDGES))
"""In the order of NASLib's six indices: by the node that an edge leaves."""

_EXAMPLE = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
_LABEL = "cell/{}_{}"


class NasBench201Space(ModelSpace):  # type: ignore[misc]
    """Stem, three stages of cells with a residual block of stride 2 between them, global pooling, classifier.

    All cells are one: node 0 is their input, node j the sum of one operation on each node before it, node 3 their
    output. The label of the edge from i to j is `cell/i_j`, as in NNI's own space of this cell, where the operations
    have shorter names. With width 16, 5 cells per stage and 32x32 images, parameters are those of the benchmark, and
    multiply-accumulates its "FLOPs" less the classifier's additions of the bias (one per class).

    Args:
        in_channels: Channels of the data.
        num_classes: Classes of the data.
        width: Channels C of the first stage; the others have 2 C and 4 C.
        cells_per_stage: Cells N of each stage.
        operations: Candidates of an edge, names of `OPERATIONS`.
        affine: Whether batch normalization in the cells has a learned scale and shift.
        input_pool: Images are averaged over squares of so many pixels before the stem; 1 leaves them as they are.

    Raises:
        SpaceError: On an unknown operation or a size that makes no network.
    """

    @staticmethod
    def isomorphism_key(choices: Mapping[str, Any]) -> str:
        """See the function of this name: architectures of one key are counted as one."""
        return isomorphism_key(choices)

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        width: int = 16,
        cells_per_stage: int = 5,
        operations: Sequence[str] = OPERATIONS,
        affine: bool = True,
        input_pool: int = 1,
    ) -> None:
        super().__init__()
        if unknown := [name for name in operations if name not in OPERATIONS]:
            raise SpaceError(f"operations must be among {list(OPERATIONS)}, got {unknown}.")
        if len(operations) < 2 or len(set(operations)) != len(operations):
            raise SpaceError(f"operations must be distinct and at least two, got {list(operations)}.")
        for name, value in (("width", width), ("cells_per_stage", cells_per_stage), ("input_pool", input_pool)):
            if value < 1:
                raise SpaceError(f"{name} must be at least 1, got {value}.")
        stem: list[nn.Module] = [nn.AvgPool2d(input_pool)] if input_pool > 1 else []
        stem += [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        self.stem = nn.Sequential(*stem)
        blocks: list[nn.Module] = []
        for stage in range(3):
            channels = width * 2**stage
            if stage > 0:
                blocks.append(_Reduction(channels // 2, channels))
            blocks += [_Cell(channels, operations, affine) for _ in range(cells_per_stage)]
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> logits `(batch, num_classes)`."""
        x = channels_last(self.stem(x))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def to_arch_string(choices: Mapping[str, Any]) -> str:
    """The arch string of the benchmark: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, `op~i` an edge from node i.

    Args:
        choices: An NNI sample of `NasBench201Space`, label -> operation.

    Raises:
        SpaceError: A label is missing or unknown, or a choice is no operation of the benchmark.
    """
    chosen = _checked(choices)
    nodes = ("|".join(f"{chosen[i, j]}~{i}" for i in range(j)) for j in range(1, NODES))
    return "+".join(f"|{node}|" for node in nodes)


def from_arch_string(text: str) -> dict[str, str]:
    """The choices that an arch string means; what `to_arch_string` undoes.

    Raises:
        SpaceError: The text is no arch string, or names an operation that the benchmark does not have.
    """
    found = _arch_operations(text)
    if unknown := [name for name in found if name not in OPERATIONS]:
        raise SpaceError(f"an arch string may hold operations {list(OPERATIONS)} only, got {unknown[0]!r} in {text!r}.")
    return {_LABEL.format(*edge): name for edge, name in zip(EDGES, found, strict=True)}


def isomorphism_key(choices: Mapping[str, Any]) -> str:
    """Equal for cells alone that compute the same, whatever their weights: what node 3 is, in terms of the input.

    "none" adds nothing, a skip connection hands on what the node is a sum of, and the order of a sum does not count.
    Pooling of nothing is nothing; a convolution of nothing is what its normalization adds. The 15,625 cells are 5,545
    networks.

    Raises:
        SpaceError: As `to_arch_string`.
    """
    chosen = _checked(choices)
    sums: list[list[str]] = [["x"]]
    for j in range(1, NODES):
        terms: list[str] = []
        for i in range(j):
            operation, given = chosen[i, j], sums[i]
            if operation == "skip_connect":
                terms += given
            elif operation.startswith("nor_conv") or (operation != "none" and given):
                terms.append(f"{operation}({'+'.join(given) or '0'})")
        sums.append(sorted(terms))
    return "+".join(sums[-1])


def to_naslib(choices: Mapping[str, Any]) -> tuple[int, ...]:
    """NASLib's six operation indices, `NASLIB_OPERATIONS` on `NASLIB_EDGES`; their `str` is the key of its tables.

    Raises:
        SpaceError: As `to_arch_string`.
    """
    chosen = _checked(choices)
    return tuple(NASLIB_OPERATIONS.index(chosen[edge]) for edge in NASLIB_EDGES)


def from_naslib(indices: Sequence[int] | str) -> dict[str, str]:
    """The choices that NASLib's six operation indices mean; what `to_naslib` undoes.

    Args:
        indices: Six whole numbers from 0 to 4, or such a list or tuple as text: "(4, 0, 3, 1, 4, 3)".

    Raises:
        SpaceError: They are not.
    """
    given: Any = indices
    if isinstance(given, str):
        match = re.fullmatch(r"\s*(?:\((.*?),?\s*\)|\[(.*?),?\s*\])\s*", given)
        parts = (match[1] or match[2] or "").split(",") if match else []
        given = [int(part) if re.fullmatch(r"\s*[0-9]\s*", part) else part for part in parts]
    numbers = list(given) if isinstance(given, (list, tuple)) else []
    if len(numbers) != len(EDGES) or not all(type(n) is int and 0 <= n < len(NASLIB_OPERATIONS) for n in numbers):
        raise SpaceError(
            f"NASLib's form of a cell must be {len(EDGES)} whole numbers from 0 to {len(NASLIB_OPERATIONS) - 1}, "
            f"got {indices!r}; for example (4, 0, 3, 1, 4, 3)."
        )
    chosen = {edge: NASLIB_OPERATIONS[n] for edge, n in zip(NASLIB_EDGES, numbers, strict=True)}
    return {_LABEL.format(*edge): chosen[edge] for edge in EDGES}


def _checked(choices: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    labels = {_LABEL.format(*edge): edge for edge in EDGES}
    if missing := [label for label in labels if label not in choices]:
        raise SpaceError(f"an architecture of NAS-Bench-201 must choose {list(labels)}, but {missing} are missing.")
    if unknown := [label for label in choices if label not in labels]:
        raise SpaceError(f"an architecture of NAS-Bench-201 may choose {list(labels)} only, got {unknown[:3]}.")
    if wrong := {label: choice for label, choice in choices.items() if choice not in OPERATIONS}:
        raise SpaceError(f"choices of NAS-Bench-201 must be among {list(OPERATIONS)}, got {wrong}.")
    return {edge: str(choices[label]) for label, edge in labels.items()}


def _arch_operations(text: str) -> list[str]:
    nodes = text.split("+") if isinstance(text, str) else []
    found = []
    for j, node in enumerate(nodes, start=1):
        parts = node[1:-1].split("|") if len(node) > 2 and node[0] == node[-1] == "|" else []
        pairs = [part.split("~") for part in parts]
        if [pair[1:] for pair in pairs] != [[str(i)] for i in range(j)]:
            break
        found += [pair[0] for pair in pairs]
    if len(nodes) != NODES - 1 or len(found) != len(EDGES):
        raise SpaceError(f"an arch string must have the form {_EXAMPLE!r}, got {text!r}.")
    return found


class _Cell(nn.Module):
    def __init__(self, channels: int, operations: Sequence[str], affine: bool) -> None:
        super().__init__()
        with label_scope("cell"):
            self.edges = nn.ModuleList(
                LayerChoice({name: _operation(name, channels, affine) for name in operations}, label=f"{i}_{j}")
                for i, j in EDGES
            )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        nodes = [x]
        for j in range(1, NODES):
            incoming = [edge for edge, (_, to) in zip(self.edges, EDGES, strict=True) if to == j]
            # A frozen "none" is no term of the sum; in a supernet every edge mixes all its operations.
            terms = [edge(node) for node, edge in zip(nodes, incoming, strict=True) if not isinstance(edge, _Zero)]
            nodes.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return nodes[-1]


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the same shape."""
        return torch.zeros_like(x)


class _Reduction(nn.Module):
    """Residual block (He et al., 2016) of stride 2, with pooling and a 1x1 convolution beside it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(before, after, 3, stride=2), _conv(after, after, 3))
        # Rounded up, as the convolution rounds: images of odd size run too.
        self.beside = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(before, after, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Twice the channels, half the size."""
        result: Tensor = self.beside(x) + self.body(x)
        return result


def _conv(before: int, after: int, kernel: int, *, stride: int = 1, affine: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(after, affine=affine),
    )


def _operation(name: str, channels: int, affine: bool) -> nn.Module:
    if name == "none":
        return _Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return _conv(channels, channels, 1 if name == "nor_conv_1x1" else 3, affine=affine)
