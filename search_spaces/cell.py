"""A space of cells (Zoph et al., 2018; Liu, Simonyan & Yang, 2019) for images, built from NNI's Cell."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from nni.nas.nn.pytorch import Cell, ModelSpace
from torch import Tensor, nn

from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.layers.memory_format import channels_last
from nni_bayes_nas.layers.side_by_side import adaptive_max_pool2d

from .operations import OPERATIONS, DropPath, auxiliary_head, image_stem

DEFAULT_OPERATIONS = (
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "conv_3x3",
)
_STEMS = {8: (1,), 28: (2,), 32: (1,), 64: (2,), 224: (2, 2, 2)}
_SMALLEST = 4  # pixels; an image is pooled while it is larger


class CellSpace(ModelSpace):  # type: ignore[misc]
    """Stem, `n_cells` searched cells, global pooling, linear classifier.

    Every cell has two inputs (the outputs of the two cells before it), `n_nodes` nodes that keep two of their incoming
    edges each, and gives the concatenation of its nodes. Before some cells the image is pooled to half its size, if it
    is larger than 4 pixels; the operations keep the size, so that the cost of a cell is that of its operations.

    `auxiliary` and `drop_path` are for training a derived network: they are refused in a search (`training_parts`), and
    `drop_training_parts` takes the auxiliary classifier away, so that it is neither counted nor saved.

    Args:
        in_channels: Channels of the data.
        num_classes: Classes of the data.
        stem: Size of the images that it is made for. 8, 32: one convolution; 28, 64: one with stride 2; 224: three
            with stride 2. Images of other sizes run too; a search refuses those of twice the size and more, which would
            pass the cells whole.
        width: Channels of every node of the first cell.
        n_cells: Cells.
        n_nodes: Nodes per cell.
        operations: Candidates, names of `OPERATIONS`; "none" is always among the choices of an edge.
        share: "all": one cell structure for all cells; "stage": one for all cells between two poolings; "none": each
            cell has its own. What is shared can be retrained with other numbers of cells.
        affine: Whether batch normalization in cells has a learned scale and shift.
        dropout: Before the classifier.
        reduce: Before which cells the image is pooled. "pool": every one but the first; "thirds": those at a third and
            at two thirds of the depth, as in DARTS.
        growth: Factor of the width at every pooling; 2 keeps the multiply-accumulates of a convolution about equal.
        auxiliary: A second classifier on the cell at two thirds of the depth; in training, `auxiliary_logits` holds
            what it gave in the last forward pass.
        drop_path: Probability, at the end of training, that an object does not pass an operation other than
            skip_connect; see `set_progress`.

    Raises:
        SpaceError: On an unknown operation or a size that makes no network.
    """

    def isomorphism_key(self, choices: Mapping[str, Any]) -> str:
        """See the function of this name: architectures of one key are counted as one."""
        return isomorphism_key(choices, self._equal_inputs)

    def __init__(
        self,
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        stem: Literal[8, 28, 32, 64, 224] = 8,
        width: int = 16,
        n_cells: int = 2,
        n_nodes: int = 3,
        operations: Sequence[str] = DEFAULT_OPERATIONS,
        share: Literal["all", "stage", "none"] = "none",
        affine: bool = False,
        dropout: float = 0.0,
        reduce: Literal["pool", "thirds"] = "pool",
        growth: float = 1.0,
        auxiliary: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check(operations, width, n_cells, n_nodes)
        _check_training(n_cells, growth, auxiliary, drop_path)
        if stem not in _STEMS:
            raise SpaceError(f"stem must be one of {list(_STEMS)}, the size of the images it is for, got {stem}.")
        self.drop_path, self.made_for = drop_path, stem
        self.stem = image_stem(in_channels, width, _STEMS[stem])
        self.cells = nn.ModuleList()
        channels = [width, width]
        size = -(-stem // 2 ** _STEMS[stem].count(2))
        stage, at = 0, _auxiliary_cell(n_cells) if auxiliary else None
        head_channels = 0
        labels = []
        for i in range(n_cells):
            pool = i > 0 and (reduce == "pool" or i in (n_cells // 3, 2 * n_cells // 3))
            if pool and size > _SMALLEST:
                size, stage, width = (size + 1) // 2, stage + 1, round(width * growth)
            labels.append({"all": "cell", "stage": f"stage{stage}", "none": f"cell{i}"}[share])
            self.cells.append(
                Cell(
                    {name: partial(_operation, name, width, affine, drop_path) for name in operations},
                    num_nodes=n_nodes,
                    num_ops_per_node=2,
                    num_predecessors=2,
                    preprocessor=_Preprocess(channels, width, pool=pool),
                    postprocessor=_KeepLast(),
                    label=labels[-1],
                )
            )
            channels = [channels[1], n_nodes * width]
            head_channels = channels[1] if i == at else head_channels
        # The stem's output is both inputs of the first cell; others with its label have two.
        self._equal_inputs = labels[0] if labels.count(labels[0]) == 1 else None
        self.head = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels[1], num_classes)
        )
        self.auxiliary_at = at
        self.auxiliary_logits: Tensor | None = None
        self.auxiliary = auxiliary_head(head_channels, num_classes) if auxiliary else None

    @property
    def training_parts(self) -> tuple[str, ...]:
        """The arguments by which this network has parts that are of use in retraining only."""
        return ("auxiliary",) * (self.auxiliary is not None) + ("drop_path",) * (self.drop_path > 0)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> logits `(batch, num_classes)`."""
        x = self.stem(x)
        previous, current = x, x
        for i, cell in enumerate(self.cells):
            previous, current = cell(previous, current)
            if i == self.auxiliary_at and self.auxiliary is not None:
                self.auxiliary_logits = self.auxiliary(current) if self.training else None
        logits: Tensor = self.head(current)
        return logits

    def set_progress(self, progress: float) -> None:
        """Sets the probability of drop-path to `progress` of its final value; training calls it every epoch.

        Args:
            progress: Share of the training that is over, in [0, 1].
        """
        for module in self.modules():
            if isinstance(module, DropPath):
                module.probability = module.final * progress

    def drop_training_parts(self) -> None:
        """Takes the auxiliary classifier away; what remains is the network that counts."""
        self.auxiliary, self.auxiliary_logits = None, None


def isomorphism_key(choices: Mapping[str, Any], equal_inputs: str | None = "cell0") -> str:
    """Equal for cells alone that are one graph: with the nodes of a cell in another order, the edges of a node too.

    A cell gives its nodes side by side, so that their order is that of weights behind it. Nodes are ordered by what
    they are in terms of the inputs; between those that are the same in that, by trying all orders.

    Args:
        choices: An NNI sample of a space of `nni.nas.nn.pytorch.Cell`s; what else it holds must be equal.
        equal_inputs: Label of a cell whose two inputs are one, as those of the first cell of a `CellSpace` are.
    """
    others: list[str] = []
    cells: dict[str, dict[int, list[tuple[str, int]]]] = {}
    for label, operation in choices.items():
        if match := re.fullmatch(r"(.*)/op_(\d+)_(\d+)", label):
            name, node, slot = match.groups()
            chosen = choices[f"{name}/input_{node}_{slot}"]
            source = int(chosen[0] if isinstance(chosen, Sequence) else chosen)
            source = 0 if source == 1 and name == equal_inputs else source
            cells.setdefault(name, {}).setdefault(int(node), []).append((str(operation), source))
        elif not re.fullmatch(r".*/input_\d+_\d+", label):
            others.append(f"{label}:{operation!r}")
    return ";".join([*(f"{name}:{_smallest_form(nodes)}" for name, nodes in sorted(cells.items())), *sorted(others)])


def _smallest_form(nodes: dict[int, list[tuple[str, int]]]) -> str:
    """The edges of every node, the nodes in that order among the admissible ones which gives the smallest text."""
    terms: dict[int, str] = {}
    for node in sorted(nodes):
        inside = sorted(f"{operation}({terms.get(source, source)})" for operation, source in nodes[node])
        terms[node] = "+".join(inside)
    alike = [list(group) for _, group in itertools.groupby(sorted(nodes, key=terms.__getitem__), terms.__getitem__)]
    first = min(nodes)
    forms = []
    for orders in itertools.product(*map(itertools.permutations, alike)):
        place = {node: first + i for i, node in enumerate(itertools.chain.from_iterable(orders))}
        edges = (sorted(f"{operation}({place.get(source, source)})" for operation, source in nodes[n]) for n in place)
        forms.append("|".join("+".join(each) for each in edges))
    return min(forms)


def _check(operations: Sequence[str], width: int, n_cells: int, n_nodes: int) -> None:
    if unknown := [name for name in operations if name not in OPERATIONS]:
        raise SpaceError(f"operations must be among {sorted(OPERATIONS)}, got {unknown}.")
    if len(operations) < 1 or len(set(operations)) != len(operations):
        raise SpaceError(f"operations must be distinct and at least one, got {list(operations)}.")
    for name, value in (("width", width), ("n_cells", n_cells), ("n_nodes", n_nodes)):
        if value < 1:
            raise SpaceError(f"{name} must be at least 1, got {value}.")


def _check_training(n_cells: int, growth: float, auxiliary: bool, drop_path: float) -> None:
    if not 1 <= growth <= 4:
        raise SpaceError(f"growth must lie in [1, 4], got {growth}; 2 doubles the width at every pooling.")
    if not 0 <= drop_path < 1:
        raise SpaceError(f"drop_path must lie in [0, 1), got {drop_path}; it is a probability, 0 means none.")
    if auxiliary and n_cells < 2:
        raise SpaceError(f"auxiliary needs a cell before the last one, got n_cells={n_cells}; raise it to 2 or more.")


def _auxiliary_cell(n_cells: int) -> int:
    return min(2 * n_cells // 3, n_cells - 2)


def _operation(
    name: str, width: int, affine: bool, drop_path: float, node: int, slot: int, chosen: int | None
) -> nn.Module:
    operation = OPERATIONS[name](width, affine)
    if drop_path > 0 and isinstance(operation, nn.Sequential):
        # Appended, not wrapped around: the names of the weights stay those of a network without drop-path.
        operation.append(DropPath(drop_path))
    return operation


class _Preprocess(nn.Module):
    """Both inputs of a cell to `width` channels and to one size; pooled to half of it if `pool`."""

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
        # For every cell anew: NNI's cells stack the terms of a node, which orders it as any other tensor.
        states = [squeeze(channels_last(x)) for squeeze, x in zip(self.squeeze, inputs, strict=True)]
        size = min(x.shape[-1] for x in states)
        if self.pool and size > _SMALLEST:
            size = (size + 1) // 2
        return [x if x.shape[-1] == size else adaptive_max_pool2d(x, size) for x in states]


class _KeepLast(nn.Module):
    """The next cell's inputs: this cell's second input and its output."""

    def forward(self, merged: Tensor, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Pass the second input through."""
        return inputs[1], merged
