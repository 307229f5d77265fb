"""A space of cells (Zoph et al., 2018; Liu, Simonyan & Yang, 2019) for small images, built from NNI's Cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from nni.nas.nn.pytorch import Cell, ModelSpace
from torch import Tensor, nn

from nni_bayes_nas.errors import SpaceError

from .operations import OPERATIONS

DEFAULT_OPERATIONS = (
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "conv_3x3",
)


class CellSpace(ModelSpace):  # type: ignore[misc]
    """Stem, `n_cells` searched cells, global pooling, linear classifier.

    Every cell has two inputs (the outputs of the two cells before it), `n_nodes` nodes that keep two of their incoming
    edges each, and gives the concatenation of its nodes. Between cells the image is pooled to half its size while it is
    larger than 4 pixels; the operations keep the size, so that the cost of a cell is that of its operations.

    Args:
        in_channels: Channels of the data.
        num_classes: Classes of the data.
        stem: 8: one convolution for 8x8 images; 28: one with stride 2, for 28x28.
        width: Channels of every node.
        n_cells: Cells.
        n_nodes: Nodes per cell.
        operations: Candidates, names of `OPERATIONS`; "none" is always among the choices of an edge.
        share: "all": one cell structure for all cells; "none": each cell has its own.
        affine: Whether batch normalization in cells has a learned scale and shift.
        dropout: Before the classifier.

    Raises:
        SpaceError: On an unknown operation or a size that makes no network.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        stem: Literal[8, 28] = 8,
        width: int = 16,
        n_cells: int = 2,
        n_nodes: int = 3,
        operations: Sequence[str] = DEFAULT_OPERATIONS,
        share: Literal["all", "none"] = "none",
        affine: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check(operations, width, n_cells, n_nodes)
        candidates = {name: partial(_operation, name, width, affine) for name in operations}
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2 if stem == 28 else 1, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.cells = nn.ModuleList()
        channels = [width, width]
        for i in range(n_cells):
            self.cells.append(
                Cell(
                    candidates,
                    num_nodes=n_nodes,
                    num_ops_per_node=2,
                    num_predecessors=2,
                    preprocessor=_Preprocess(channels, width, pool=i > 0),
                    postprocessor=_KeepLast(),
                    label="cell" if share == "all" else f"cell{i}",
                )
            )
            channels = [channels[1], n_nodes * width]
        self.head = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels[1], num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> logits `(batch, num_classes)`."""
        x = self.stem(x)
        previous, current = x, x
        for cell in self.cells:
            previous, current = cell(previous, current)
        logits: Tensor = self.head(current)
        return logits


def _check(operations: Sequence[str], width: int, n_cells: int, n_nodes: int) -> None:
    if unknown := [name for name in operations if name not in OPERATIONS]:
        raise SpaceError(f"operations must be among {sorted(OPERATIONS)}, got {unknown}.")
    if len(operations) < 1 or len(set(operations)) != len(operations):
        raise SpaceError(f"operations must be distinct and at least one, got {list(operations)}.")
    for name, value in (("width", width), ("n_cells", n_cells), ("n_nodes", n_nodes)):
        if value < 1:
            raise SpaceError(f"{name} must be at least 1, got {value}.")


def _operation(name: str, width: int, affine: bool, node: int, slot: int, chosen: int | None) -> nn.Module:
    return OPERATIONS[name](width, affine)


class _Preprocess(nn.Module):
    """Both inputs of a cell to `width` channels and to one size; pooled to half of it from the second cell on."""

    def __init__(self, channels: Sequence[int], width: int, *, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.squeeze = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width))
            if c != width
            else nn.Identity()
            for c in channels
        )

    def forward(self, inputs: Any) -> list[Tensor]:
        """Two tensors to two tensors of equal shape."""
        states = [squeeze(x) for squeeze, x in zip(self.squeeze, inputs, strict=True)]
        size = min(x.shape[-1] for x in states)
        if self.pool and size > 4:
            size = (size + 1) // 2
        return [x if x.shape[-1] == size else nn.functional.adaptive_max_pool2d(x, size) for x in states]


class _KeepLast(nn.Module):
    """The next cell's inputs: this cell's second input and its output."""

    def forward(self, merged: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Pass the second input through."""
        return inputs[1], merged
