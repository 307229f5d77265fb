"""What the frozen beginning of a network gives for each object of the training data, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader

from nni_bayes_nas.layers.variational import Variational
from nni_bayes_nas.optim.holding import Holding

# Objects of a batch that are looked at once all are known: in the next batches, and then in every so many.
_LOOKED_AT, _FIRST_BATCHES, _EVERY = 8, 100, 8


class BatchIndices:
    """Takes down which objects a data loader puts into its batches; it goes between the loader and its sampler.

    Args:
        sampler: Gives the indices of a batch each.
        n_objects: Of the data set.

    Attributes:
        batches: Of the epoch so far, from its first batch on.
    """

    def __init__(self, sampler: Any, n_objects: int) -> None:
        # Not "sampler": Lightning asks a batch sampler for its own of that name, to tell it the epoch.
        self._inner, self.n_objects = sampler, n_objects
        self.batches: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        self.batches = []
        for batch in self._inner:
            self.batches.append(batch)
            yield batch

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name == "_inner":  # not there yet: while it is copied
            raise AttributeError(name)
        return getattr(self._inner, name)

    def of(self, batch_idx: int) -> Tensor | None:
        """The indices of the objects of a batch; None where they are not known."""
        if batch_idx >= len(self.batches):
            return None
        return torch.as_tensor(self.batches[batch_idx], dtype=torch.long).flatten()


def watch_indices(loader: Any) -> BatchIndices | None:
    """Takes down the batches of a data loader; None where it gives no indices, an iterable data set's say."""
    if not isinstance(loader, DataLoader) or (loader.batch_sampler is None and loader.sampler is None):
        return None
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    found = getattr(loader, name)
    if isinstance(found, BatchIndices):
        return found
    if not hasattr(loader.dataset, "__len__"):
        return None
    indices = BatchIndices(found, len(loader.dataset))
    object.__setattr__(loader, name, indices)  # the loader forbids it; but what it yields is the same
    return indices


class ActivationCache:
    """Runs a chain of modules, the outputs of whose frozen beginning are kept for every object.

    The beginning ends before the first module of which something is optimized, or that is not the same twice (dropout).
    One that draws random numbers all the same, or changes its buffers, is noticed when it runs: then nothing is kept.
    Of a linear layer that comes there and of which some rows are optimized, the outputs of the other rows are kept too.
    Whether an object is the one that it was is looked at, of a few in a batch, and after a hundred batches in every
    eighth, by a weighted sum and the sum of squares of its input, of which a flip or a shift changes the first: where
    data are augmented, nothing is kept any more.

    Args:
        chain: The network; its `forward` is replaced until `release`.
        holding: What is frozen in it.
        n_objects: Of the training data.
        limit: Bytes that may be kept.

    Attributes:
        why_not: Why nothing is kept, in words; None where it is.
        indices: Of the objects of the next pass, which the caller sets; None: unknown.
    """

    def __init__(self, chain: nn.Sequential, holding: Holding, n_objects: int, limit: int) -> None:
        self.chain, self.holding, self.limit, self.n = chain, holding, limit, n_objects
        self.modules = list(_flat(chain))
        # Not by names, of which a module that is there twice has two.
        moving = {id(p) for name, p in holding.parameters.items() if holding.some[name]}
        self.cut = 0
        for module in self.modules:
            if any(id(p) in moving for p in module.parameters()) or any(_differs(part) for part in module.modules()):
                break
            self.cut += 1
        self.rows = None
        if self.cut < len(self.modules) and isinstance(self.modules[self.cut], nn.Linear):
            by_rows = (rows for rows in holding.rows.values() if rows.layer is self.modules[self.cut])
            self.rows = next(by_rows, None)
        # What only changes shapes is not worth keeping.
        self._keeps_prefix = any(True for module in self.modules[: self.cut] for _ in module.parameters())
        self.why_not: str | None = None
        if not self._keeps_prefix and self.rows is None:
            self.why_not = "no frozen layer comes before all that is optimized"
        self.indices: Tensor | None = None
        self._kept: list[Tensor] = []
        self._known = torch.zeros(n_objects, dtype=torch.bool)
        self._sums = torch.zeros(n_objects, 2, dtype=torch.float64)
        self._weights: Tensor | None = None
        self._batch = 0
        if self.why_not is None:
            vars(chain)["forward"] = self._forward

    @property
    def layers(self) -> int:
        """Frozen layers with weights whose outputs are kept."""
        known = self.modules[: self.cut] if self.why_not is None else []
        return sum(p.dim() > 1 for module in known for p in module.parameters())

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(part.numel() * part.element_size() for part in self._kept)

    def release(self) -> None:
        """The chain is as it was."""
        vars(self.chain).pop("forward", None)
        self._kept = []

    def _forward(self, x: Tensor) -> Tensor:
        at, self.indices = self.indices, None
        if at is None or len(at) != len(x) or not self.chain.training or self.why_not is not None:
            return self._rest(x, 0)
        kept = self._look_up(x, at)
        if kept is None:
            return self._rest(x, 0)
        if self.rows is not None:
            self.rows.given = kept[-1]
        return self._rest(kept[0], self.cut) if self._keeps_prefix else self._rest(x, 0)

    def _rest(self, x: Tensor, start: int) -> Tensor:
        for module in self.modules[start:]:
            x = module(x)
        return x

    @torch.no_grad()
    def _look_up(self, x: Tensor, at: Tensor) -> list[Tensor] | None:
        """The output of the beginning, and that of the layer behind it; computed where it is not known."""
        place = at.to(x.device)
        known = self._known[at]
        whole = bool(known.all())
        looked = torch.arange(len(at))
        if whole:
            # Every object is looked at until all are known; then a few of a batch, at other places each time.
            self._batch += 1
            if self._batch > _FIRST_BATCHES and self._batch % _EVERY:
                return [part.index_select(0, place) for part in self._kept]
            looked = (looked[:_LOOKED_AT] + _LOOKED_AT * self._batch) % len(at)
        sums, seen = self._sums_of(x[looked.to(x.device)]), known[looked]
        if not torch.allclose(self._sums[at[looked]][seen], sums[seen], rtol=1e-9, atol=1e-9):
            self.why_not = "the same object was another one: data are augmented"
            self._kept = []
            return None
        if not whole:
            found, new = self._computed(x[~known.to(x.device)]), at[~known]
            if found is None:
                self._kept = []
                return None
            if not self._kept:
                size = self.n * sum(part[0].numel() * part.element_size() for part in found)
                if size > self.limit:
                    allowed = self.limit / 2**20
                    self.why_not = f"{size / 2**20:.0f} MiB of outputs are more than the {allowed:.0f} allowed"
                    return None
                self._kept = [part.new_empty(self.n, *part.shape[1:]) for part in found]
            for kept, part in zip(self._kept, found, strict=True):
                kept.index_copy_(0, new.to(x.device), part)
            self._known[new], self._sums[new] = True, sums[~known]
        return [part.index_select(0, place) for part in self._kept]

    def _sums_of(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1).double()
        if self._weights is None or self._weights.shape[0] != flat.shape[1]:
            drawn = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            self._weights = drawn.to(x.device)
        return torch.stack([flat @ self._weights, flat.square().sum(1)], 1).cpu()

    def _computed(self, values: Tensor) -> list[Tensor] | None:
        """Of the frozen beginning, and of all rows of the layer behind it; None where it is not the same twice."""
        before = self._drawn_and_counted(values)
        for module in self.modules[: self.cut]:
            values = module(values)
        if any(not torch.equal(a, b) for a, b in zip(before, self._drawn_and_counted(values), strict=True)):
            # Random numbers that were drawn here are drawn again.
            torch.set_rng_state(before[0])
            if values.is_cuda:
                torch.cuda.set_rng_state(before[1], values.device)
            self.why_not = "a frozen layer gives something else each time it sees an object"
            return None
        found = [values] if self._keeps_prefix else []
        if self.rows is not None:
            # Of all rows: those that are optimized are written over, each time.
            found.append(nn.functional.linear(values, self.rows.layer.weight, self.rows.layer.bias))
        return found

    def _drawn_and_counted(self, values: Tensor) -> list[Tensor]:
        """States of the generators of random numbers, and how often the buffers of the beginning were changed."""
        states = [torch.get_rng_state()]
        if values.is_cuda:
            states.append(torch.cuda.get_rng_state(values.device))
        versions = [buffer._version for module in self.modules[: self.cut] for buffer in module.buffers()]
        return [*states, torch.tensor(versions)]


def is_the_same_twice(chain: nn.Sequential) -> bool:
    """Whether no module is known to differ; normalization with statistics does not where it is frozen."""
    return not any(_differs(m) for m in chain.modules() if not isinstance(m, _NormBase) or _by_the_batch(m))


def _differs(module: nn.Module) -> bool:
    """Whether a module gives another output, or changes itself, when it sees an object again in training."""
    random = isinstance(module, (_DropoutNd, Variational)) or "drop" in type(module).__name__.lower()
    return random or (isinstance(module, _NormBase) and module.training) or _by_the_batch(module)


def _by_the_batch(module: nn.Module) -> bool:
    """Whether it normalizes by the statistics of the batch, frozen or not."""
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _flat(chain: Sequence[nn.Module] | nn.Sequential) -> Iterator[nn.Module]:
    """The modules of a chain in order, those of chains in it each by itself."""
    for module in chain:
        if type(module) is nn.Sequential:
            yield from _flat(module)
        else:
            yield module


def chain_of(module: nn.Module) -> tuple[str, nn.Sequential] | None:
    """The outermost chain that holds all parameters of a module, and its name with a dot behind it; None without."""
    every = {id(p) for p in module.parameters()}
    for name, found in module.named_modules():
        if type(found) is nn.Sequential and every <= {id(p) for p in found.parameters()}:
            return (f"{name}." if name else ""), found
    return None


def why_not(wanted: bool, indices: BatchIndices | None, chain: Any, cached: ActivationCache | None) -> str | None:
    """Why nothing is kept; None where something is, or nobody has tried.

    Args:
        wanted: Whether it should be.
        indices: What `watch_indices` has found.
        chain: What `chain_of` has found.
        cached: What is kept.
    """
    if not wanted:
        return "cache=False, or data that are augmented"
    if indices is None:
        return "the data loader does not say which objects are in a batch"
    if chain is None:
        return "the network is no nn.Sequential"
    return None if cached is None else cached.why_not
