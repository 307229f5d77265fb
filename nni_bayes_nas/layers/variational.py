"""Linear and convolutional layers whose weights are Gaussian: a mean and a standard deviation for each of them.

A network is converted as it is, with the names of its weights, and back. Biases and normalization stay points. In
training, and where `weight_noise` says so, a layer adds the noise of its weights to its output:

    local     every output has noise of its own, of the variance that the weights give it (Kingma, Salimans & Welling,
              2015, arXiv 1506.02557; in a convolution, each place independently of the others, as Molchanov et al.,
              2017, arXiv 1701.05369)
    flipout   weights are drawn once for a batch, and their noise changes signs from object to object (Wen et al., 2018,
              arXiv 1803.04386): exact where noise that is shared by all places of an image matters
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from nni_bayes_nas.bayes import normal
from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.layers.convolution import is_plain_convolution
from nni_bayes_nas.layers.flow import Normalized, before_normalization
from nni_bayes_nas.layers.gaussian_output import ESTIMATORS, Apply, Estimator, noisy_output
from nni_bayes_nas.layers.masked import mask_of
from nni_bayes_nas.layers.normalization import batch_norms, recalibrated

M = TypeVar("M", bound=nn.Module)


class Variational(nn.Module):
    """What Gaussian layers have in common; `weight` holds the means.

    Attributes:
        rho: Logarithms of the standard deviations, of the shape of `weight`; see `normal.sd`.
        prior: See `normal.kl_to_prior`.
        prior_sd: Of the prior "fixed".
        estimator: How the noise comes into the output.
        normalized: Where the scale of the weights means nothing, since normalization follows: of every one of the
            "filters", or of the "layer"; None: nowhere. The divergence is that of weights whose means have there a root
            mean square of 1.
        noisy: Whether the output has noise; None: in training.
    """

    weight: Any
    bias: Any
    rho: nn.Parameter
    prior: normal.Prior
    prior_sd: float
    estimator: Estimator
    normalized: Normalized
    noisy: bool | None

    def kl(self) -> Tensor:
        """KL of the weights to their prior, in nats, of those that are not left out; `()`."""
        return divergence(self.weight, self.rho, self.prior, self.prior_sd, self.normalized, mask_of(self))

    @property
    def is_noisy(self) -> bool:
        """Whether the output has noise now."""
        return self.training if self.noisy is None else self.noisy

    def output(self, x: Tensor, apply: Apply) -> Tensor:
        """The output for an input, with what the layer computes as a function of input, weight and bias."""
        if not self.is_noisy:
            return apply(x, self.weight, self.bias)
        sd, mask = normal.sd(self.rho), mask_of(self)
        return noisy_output(x, apply, self.weight, sd if mask is None else sd * mask, self.bias, self.estimator)


class VariationalLinear(nn.Linear, Variational):
    """`nn.Linear` with Gaussian weights; made by `to_variational`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(*batch, in_features)` -> `(*batch, out_features)`."""
        return self.output(x, F.linear)


class VariationalConv2d(nn.Conv2d, Variational):
    """`nn.Conv2d` with Gaussian weights; made by `to_variational`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, in_channels, h, w)` -> `(batch, out_channels, h', w')`."""
        return self.output(x, self._conv_forward)


_KINDS: dict[Any, type[Variational]] = {nn.Linear.forward: VariationalLinear, nn.Conv2d.forward: VariationalConv2d}
_BACK: dict[type[Variational], type[nn.Module]] = {VariationalLinear: nn.Linear, VariationalConv2d: nn.Conv2d}


def to_variational(
    model: M,
    *,
    prior: normal.Prior = "empirical_bayes",
    prior_sd: float = 1.0,
    rho: float = -5.0,
    estimator: Estimator = "local",
    skip: Collection[str] = (),
) -> M:
    """Give the weights of all linear and convolutional layers standard deviations, in place.

    Args:
        model: Any network. Its weights become means.
        prior: Of the weights, see `normal.kl_to_prior`.
        prior_sd: Of the prior "fixed". A layer that normalization follows is `normalized`, where `flow` can tell.
        rho: Logarithm of every standard deviation at first.
        estimator: How noise comes into the outputs.
        skip: Names of modules that stay as they are, with all that is in them.

    Returns:
        The model; another object only where it is itself one of these layers.

    Raises:
        SpaceError: Layers with weights that cannot be converted, or that are another layer's too; it names them.
        ConfigError: Options that cannot be, or a name in `skip` that is none of a module.
    """
    _check(prior, prior_sd, rho, estimator)
    modules = dict(model.named_modules())
    if unknown := sorted(set(skip) - set(modules)):
        raise ConfigError(f"skip must name modules of the model, got {unknown}; see model.named_modules().")
    kept = {id(m) for name in skip for m in modules[name].modules()}
    if others := [f"{name or 'the model'} ({type(m).__name__})" for name, m in modules.items() if _odd(m, kept)]:
        raise SpaceError(
            f"weights of Linear and Conv2d layers alone can be variational, but the model has {', '.join(others)}\n"
            "name these in skip, to keep them as they are"
        )
    check_tied(model, {id(m.weight) for m in modules.values() if id(m) not in kept and _kind(m) is not None})
    normalized = before_normalization(model, lambda layer: _kind(layer) is not None)

    def converted(layer: nn.Module) -> nn.Module:
        kind = None if id(layer) in kept else _kind(layer)
        if kind is None:
            return layer
        new: Any = _recast(layer, kind)
        new.rho = nn.Parameter(torch.full_like(new.weight, rho))
        new.prior, new.prior_sd, new.estimator, new.noisy = prior, prior_sd, estimator, None
        new.normalized = normalized.get(id(layer))
        return new  # type: ignore[no-any-return]

    return _replaced(model, converted)


def check_tied(model: nn.Module, weights: Collection[int] | None = None) -> None:
    """Refuse parameters that two modules share, of some ids or all: each would have a posterior of its own.

    Raises:
        SpaceError: It names both.
    """
    names: dict[int, str] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if weights is not None and id(value) not in weights:
            continue
        # A module that occurs twice has its parameters under two names, of which torch knows the first.
        path = name.rpartition(".")[0]
        first = names.setdefault(id(value), name)
        if first != name and model.get_submodule(path) is not model.get_submodule(first.rpartition(".")[0]):
            raise SpaceError(
                f"every layer must have weights of its own, but {first} and {name} are one; use one layer twice instead"
            )


def to_deterministic(model: M) -> M:
    """The inverse of `to_variational`: weights are the means; in place.

    Raises:
        ConfigError: Weights are left out by masks, which only `compression.mean_network` takes along.
    """

    def converted(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, Variational):
            return layer
        if type(layer) not in _BACK:
            raise ConfigError("to_deterministic takes networks without masks, got a pruned one; use mean_network.")
        new = _recast(layer, _BACK[type(layer)])
        del new._parameters["rho"]
        for name in ("prior", "prior_sd", "estimator", "normalized", "noisy"):
            del new.__dict__[name]
        return new

    return _replaced(model, converted)


def variational_layers(model: nn.Module) -> dict[str, Variational]:
    """The Gaussian layers of a network by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Variational)}


def collect_kl(model: nn.Module) -> dict[str, Tensor]:
    """KL of every Gaussian layer to its prior, by name, in nats; `()` each. Nothing is divided by the objects here."""
    layers = variational_layers(model)
    return dict(zip(layers, divergences(list(layers.values())).unbind(), strict=True)) if layers else {}


def divergences(layers: Sequence[Variational]) -> Tensor:
    """KL of every one of some Gaussian layers to its prior, in nats; `(layers,)`.

    What `Variational.kl` gives of each, in as many calls as the layers have different shapes.
    """
    kinds: dict[Any, list[int]] = {}
    for i, layer in enumerate(layers):
        # Masks take another number out of each.
        own = None if mask_of(layer) is None else i
        like = layer.weight.shape, layer.weight.dtype, layer.prior, layer.prior_sd, layer.normalized, own
        kinds.setdefault(like, []).append(i)
    found: list[Tensor] = []
    for (_, _, prior, prior_sd, normalized, own), which in kinds.items():
        if own is not None:
            found.append(layers[own].kl().reshape(1))
            continue
        kl = functools.partial(divergence, prior=prior, prior_sd=prior_sd, normalized=normalized)
        means, rho = (torch.stack([getattr(layers[i], name) for i in which]) for name in ("weight", "rho"))
        found.append(torch.vmap(kl)(means, rho))
    order = sorted(range(len(layers)), key=[i for which in kinds.values() for i in which].__getitem__)
    return torch.cat(found)[order]


def divergence(
    mean: Tensor,
    rho: Tensor,
    prior: normal.Prior,
    prior_sd: float,
    normalized: Normalized = None,
    mask: Tensor | None = None,
) -> Tensor:
    """KL of the Gaussian weights of a layer to their prior, in nats; `()`.

    Args:
        mean: Of the weights, rows are filters.
        rho: Logarithms of their standard deviations.
        prior: See `normal.kl_to_prior`.
        prior_sd: Of the prior "fixed".
        normalized: See `Variational`.
        mask: 0 for weights that are left out and cost nothing.
    """
    sd = normal.sd(rho)
    if normalized is not None:
        rows = mean.flatten(1) if normalized == "filters" else mean.reshape(1, -1)
        scale = rows.square().mean(1).clamp_min(1e-24).rsqrt().reshape(-1, *[1] * (mean.dim() - 1))
        mean, sd = mean * scale, sd * scale
    if mask is not None:
        mean, sd = mean[mask > 0], sd[mask > 0]
        if not mean.numel():
            return mean.sum()
    return normal.kl_to_prior(mean, sd, prior, prior_sd)


@contextlib.contextmanager
def weight_noise(model: nn.Module, on: bool, calibration: Sequence[Tensor] = ()) -> Iterator[None]:
    """Inside the block, all outputs have noise or none, in training as in evaluation.

    Args:
        model: A network.
        on: Whether outputs have noise.
        calibration: Batches of inputs: batch normalization is then by running statistics of such outputs, as in
            training it is by those of the batch. Those of the means alone know nothing of the variance that noise adds.
    """
    layers = list(variational_layers(model).values())
    before = [layer.noisy for layer in layers]
    for layer in layers:
        layer.noisy = on
    recalibrate = bool(calibration) and bool(batch_norms(model))
    # torch's fast path of attention in evaluation reads weights, and calls no layers that hold them.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast and not (on and layers))
    try:
        with recalibrated(model, model, calibration) if recalibrate else contextlib.nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for layer, noisy in zip(layers, before, strict=True):
            layer.noisy = noisy


def _check(prior: str, prior_sd: float, rho: float, estimator: str) -> None:
    if prior not in normal.PRIORS:
        raise ConfigError(f"prior must be one of {', '.join(normal.PRIORS)}, got {prior!r}.")
    if estimator not in ESTIMATORS:
        raise ConfigError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}.")
    if not 0 < prior_sd < float("inf"):
        raise ConfigError(f"prior_sd is a standard deviation and must be above 0, got {prior_sd}; 1 is usual.")
    low, high = normal.RHO_RANGE
    if not low <= rho <= high:
        raise ConfigError(f"rho must be in [{low:g}, {high:g}], got {rho}; -5 is a standard deviation of .0067.")


def _kind(layer: nn.Module) -> type[Variational] | None:
    """The Gaussian layer that a layer can become."""
    if "weight" not in layer._parameters or parametrize.is_parametrized(layer):
        return None
    if isinstance(layer, nn.Conv2d) and not is_plain_convolution(layer):
        return None
    return _KINDS.get(type(layer).forward)


def _odd(module: nn.Module, kept: set[int]) -> bool:
    """Whether a module has weights of its own that would stay points unasked: matrices, that is, and filters."""
    if id(module) in kept or isinstance(module, Variational) or _kind(module) is not None:
        return False
    own = [*module._parameters.values()]
    if parametrize.is_parametrized(module):
        own += [p for name, p in module.named_parameters() if name.startswith("parametrizations.")]
    return any(p is not None and p.dim() > 1 for p in own)


def _recast(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A module of another kind with the same parameters, buffers, hooks and attributes."""
    new = kind.__new__(kind)
    new.__dict__.update(layer.__dict__)
    new._parameters = dict(layer._parameters)
    return new


def _replaced(model: M, converted: Callable[[nn.Module], nn.Module]) -> M:
    """Every module of a model converted, a shared one once."""
    done: dict[int, nn.Module] = {}

    def of(module: nn.Module) -> nn.Module:
        if id(module) not in done:
            done[id(module)] = converted(module)
        return done[id(module)]

    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[name] = of(child)
    result: Any = of(model)
    return result  # type: ignore[no-any-return]
