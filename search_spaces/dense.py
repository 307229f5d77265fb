"""A space of fully connected layers, for data of vectors."""

from __future__ import annotations

from collections.abc import Sequence

from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import Tensor, nn

from nni_bayes_nas.errors import SpaceError


class DenseSpace(ModelSpace):  # type: ignore[misc]
    """Linear stem, `depth` layers of one choice each, linear head; images are flattened.

    A layer is "skip" (nothing), "low_rank_r" (two linear maps with r units between them), "linear", or "wide" (two
    linear maps with ReLU and `2 width` units between them); all but "skip" end in batch normalization and ReLU. With
    the defaults and 10 features the largest network has about 50 times the parameters of the smallest, with 64
    features about 10 times.

    Args:
        in_features: Numbers per object.
        num_outputs: Classes of the data, or 1 for regression.
        width: Units between the layers.
        depth: Layers with a choice.
        ranks: One low-rank candidate for each; None: a sixteenth and a quarter of the width.
        wide: Whether "wide" is a candidate.
        dropout: Before the head.

    Raises:
        SpaceError: On a size that makes no network.
    """

    def __init__(
        self,
        *,
        in_features: int = 10,
        num_outputs: int = 1,
        width: int = 64,
        depth: int = 3,
        ranks: Sequence[int] | None = None,
        wide: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("in_features", in_features), ("num_outputs", num_outputs), ("width", width)):
            if value < 1:
                raise SpaceError(f"{name} must be at least 1, got {value}.")
        if depth < 1:
            raise SpaceError(f"depth must be at least 1, got {depth}.")
        if ranks is None:
            ranks = sorted({max(1, width // 16), width // 4} - {0, width})
        if len(set(ranks)) != len(ranks) or not all(1 <= rank < width for rank in ranks):
            raise SpaceError(f"ranks must be distinct and lie in 1..{width - 1} (width - 1), got {list(ranks)}.")
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(in_features, width, bias=False), *_end(width))
        self.layers = nn.ModuleList(
            LayerChoice(_candidates(width, ranks, wide), label=f"layer{i}") for i in range(depth)
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_features)` or images of as many numbers -> outputs `(batch, num_outputs)`."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        outputs: Tensor = self.head(x)
        return outputs


def _candidates(width: int, ranks: Sequence[int], wide: bool) -> dict[str, nn.Module]:
    candidates: dict[str, nn.Module] = {"skip": nn.Identity()}
    for rank in ranks:
        maps = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        candidates[f"low_rank_{rank}"] = nn.Sequential(*maps, *_end(width))
    candidates["linear"] = nn.Sequential(nn.Linear(width, width, bias=False), *_end(width))
    if wide:
        inner = nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width, bias=False)
        candidates["wide"] = nn.Sequential(*inner, *_end(width))
    return candidates


def _end(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm1d(width), nn.ReLU()
