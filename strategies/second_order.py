"""Second order bilevel gradient: the gradient of the structure through one step of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.layers.twice import DifferentiatedTwice

from .double_backward import differentiate_twice, hidden_error, lacks_double_backward, refusal, scalar

Method = Literal["exact", "finite_difference"]
# Length of the step w -> w +- eps v of the finite difference (Liu, Simonyan & Yang, 2019, footnote 2).
_PERTURBATION = 0.01


class StepSettings(TypedDict):
    """What `hypergradient` must know of the optimizer of the weights."""

    learning_rate: float
    momentum: float
    momentum_buffers: list[Tensor | None]
    weight_decay: float | list[float]
    nesterov: bool


def hypergradient(
    val_loss: Callable[[], Tensor],
    train_loss: Callable[[], Tensor],
    weights: Sequence[nn.Parameter],
    structure: Sequence[nn.Parameter],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    momentum_buffers: Sequence[Tensor | None] | None = None,
    weight_decay: float | Sequence[float] = 0.0,
    nesterov: bool = False,
    method: Method,
    module: nn.Module | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Validation loss after a virtual step of the weights, and its gradient for the structure through that step.

    The virtual step is that of torch's SGD (with momentum b and weight decay d inside):
        w' = w - xi s,   m = b m_0 + g,   g = grad_w L_tr(w, a) + d w,   s = g + b m (Nesterov) or m.
    The gradient is Eq. (7) of Liu, Simonyan & Yang (2019, arXiv 1806.09055), with the share c of g in the step:
        dL_val(w', a)/da - xi c [d^2 L_tr(w, a)/da dw] v,   v = grad_w' L_val(w', a),   c = 1 + b (Nesterov) or 1.
    "exact" takes the product by a backward pass through the backward pass; "finite_difference" by Eq. (8):
        [grad_a L_tr(w + eps v, a) - grad_a L_tr(w - eps v, a)] / (2 eps),   eps = 0.01 / |v|.
    A kink (ReLU, max pooling) between w + eps v and w - eps v adds a jump / (2 eps), which the exact product does not
    see: on small batches the two differ by as much as their size, and agree where the network is smooth.

    All passes see the same noise: the state of torch's global generators (CPU, and the GPUs of the weights) is the same
    before every call, and afterwards as it was. Noise from generators of the caller's own is the caller's business.
    Afterwards weights, buffers of `module` and every `.grad` are bit for bit as before, also if a callable raises.

    Args:
        val_loss: Computes L_val with graph, at the current values of the parameters; `()`. Called once, at w'.
        train_loss: The same for L_tr. Called once ("exact") or three times.
        weights: w, the parameters of the virtual step; one that L_tr does not use stays, as in torch.
        structure: a.
        learning_rate: xi, the learning rate of the weights.
        momentum: b.
        momentum_buffers: m_0, one per weight; None (in the list, or for all) before the first step.
        weight_decay: d, factor of the L2 decay of the weights; one for all, or one per weight.
        nesterov: As in `torch.optim.SGD`.
        method: How the product with the second derivative is taken. "exact" holds the graph of L_tr and of its
            gradient while L_val is computed; L_tr runs with the layers of `nni_bayes_nas.layers.twice`.
        module: Holds the buffers (running statistics) that the passes must leave alone.

    Returns:
        The validation loss at w', `()`, and one gradient per structure parameter.

    Raises:
        SpaceError: If an operation has no double backward, under "exact".
        NumericsError: If the gradient v is not finite.
    """
    if method not in ("exact", "finite_difference"):
        raise ConfigError(f"second_order must be 'exact' or 'finite_difference', got {method!r}.")
    run = _Passes(weights, module)
    with run, torch.enable_grad():
        with DifferentiatedTwice() if method == "exact" else contextlib.nullcontext():
            loss = run(train_loss)
        gradients = torch.autograd.grad(loss, weights, create_graph=method == "exact", allow_unused=True)
        buffers = [None] * len(weights) if momentum_buffers is None else momentum_buffers
        decays = list(weight_decay) if isinstance(weight_decay, Sequence) else [weight_decay] * len(weights)
        steps = [
            None if g is None else _sgd_step(w, g.detach(), buffer, momentum, decay, nesterov)
            for w, g, buffer, decay in zip(weights, gradients, buffers, decays, strict=True)
        ]
        run.move(steps, -learning_rate)
        val = run(val_loss)
        direct, v = _split(torch.autograd.grad(val, [*structure, *weights], allow_unused=True), structure)
        run.restore_weights()
        factor = learning_rate * (1.0 + momentum if nesterov else 1.0)
        # A weight that L_tr does not use has not moved: its share of v reaches no structure parameter.
        v = [None if step is None else part for step, part in zip(steps, v, strict=True)]
        norm = _norm(v, val)
        if not bool(torch.isfinite(norm)):
            raise NumericsError(
                f"the gradient of the validation loss at the virtual weights must be finite, but its norm is {norm}; "
                f"lower the learning rate of the weights ({learning_rate:g}) or use order=1."
            )
        if float(norm) == 0.0 or factor == 0.0:
            product: list[Tensor | None] = [None] * len(structure)
        elif method == "exact":
            product = _exact_product(gradients, v, structure, lambda: run(train_loss), module)
        else:
            product = _central_difference(run, train_loss, structure, v, _PERTURBATION / float(norm))
    result = []
    for parameter, first, second in zip(structure, direct, product, strict=True):
        gradient = torch.zeros_like(parameter) if first is None else first
        result.append((gradient if second is None else gradient - factor * second).detach())
    return val.detach(), result


def step_settings(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter]) -> StepSettings:
    """The virtual step that stands for an optimizer, as arguments of `hypergradient`.

    SGD is followed to the letter but for gradient clipping; of any other optimizer only learning rate and weight decay
    are, as a step of plain gradient descent.

    Raises:
        ConfigError: If groups of weights have different settings but for the decay, or SGD dampens or maximizes.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # Lightning wraps it
    names = ("lr", "momentum", "nesterov", "dampening", "maximize")
    settings = {tuple(group.get(name, 0) for name in names) for group in inner.param_groups}
    if len(settings) != 1:
        raise ConfigError(
            f"order=2 needs one learning rate and momentum for all weights, got {len(settings)} kinds of "
            "parameter groups; use one group, or order=1."
        )
    rate, momentum, nesterov, dampening, maximize = settings.pop()
    if dampening or maximize:
        raise ConfigError(
            f"order=2 needs an optimizer without dampening and maximize, got {dampening} and {maximize}; use order=1."
        )
    if not isinstance(inner, torch.optim.SGD):
        momentum, nesterov = 0.0, False
    decay = {id(p): float(group.get("weight_decay", 0)) for group in inner.param_groups for p in group["params"]}
    decays = [decay.get(id(w), 0.0) for w in weights]
    return StepSettings(
        learning_rate=float(rate),
        momentum=float(momentum),
        momentum_buffers=[inner.state[w].get("momentum_buffer") if w in inner.state else None for w in weights],
        weight_decay=decays[0] if len(set(decays)) == 1 else decays,
        nesterov=bool(nesterov),
    )


def check_double_backward(module: nn.Module, *inputs: Any) -> None:
    """Try whether a module can be differentiated twice, on a tiny batch; leaves no trace in it.

    Args:
        module: In the mode (training or not) in which it will be used.
        inputs: Its arguments, a batch of two objects.

    Raises:
        SpaceError: If an operation has no double backward; it names the operation and the modules.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    run = _Passes(weights, module)
    with run, torch.enable_grad():
        failure = differentiate_twice(run(lambda: scalar(module(*inputs))), weights)
        if failure is not None:
            raise refusal(failure, module, lambda: run(lambda: module(*inputs)))


class _Passes:
    """Runs losses with the same noise, weights that can be moved, and buffers that are put back."""

    def __init__(self, weights: Sequence[nn.Parameter], module: nn.Module | None) -> None:
        self._weights = weights
        self._kept = [w.detach().clone() for w in weights]
        self._moved = False
        self._cpu = torch.get_rng_state()
        self._gpu = {w.device: torch.cuda.get_rng_state(w.device) for w in weights if w.device.type == "cuda"}
        self._buffers = [
            (owner, name, buffer)
            for owner in (module.modules() if module is not None else ())
            for name, buffer in owner._buffers.items()
            if buffer is not None
        ]

    def __enter__(self) -> _Passes:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore_weights()
        for owner, name, buffer in self._buffers:
            owner._buffers[name] = buffer
        self._reset_noise()

    def __call__(self, loss: Callable[[], Any]) -> Any:
        """One pass: the noise and the buffers of every other."""
        # Each pass has buffers of its own: the graph of an earlier one may hold those that it read.
        clones = {id(buffer): buffer.clone() for _, _, buffer in self._buffers}
        for owner, name, buffer in self._buffers:
            owner._buffers[name] = clones[id(buffer)]
        self._reset_noise()
        # Inside autocast the weights' casts of an earlier pass would be taken for those of the moved weights.
        torch.clear_autocast_cache()
        return loss()

    def move(self, direction: Sequence[Tensor | None], scale: float) -> None:
        """Set the weights to w + scale * direction, where there is one."""
        self._moved = True
        for weight, kept, step in zip(self._weights, self._kept, direction, strict=True):
            if step is not None:
                # Through .data: a graph that is still to be used reads the weights again once they are back.
                weight.data.copy_(kept).add_(step, alpha=scale)

    def restore_weights(self) -> None:
        """Set the weights to w again."""
        if self._moved:
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.data.copy_(kept)
            torch.clear_autocast_cache()
            self._moved = False

    def _reset_noise(self) -> None:
        torch.set_rng_state(self._cpu)
        for device, state in self._gpu.items():
            torch.cuda.set_rng_state(state, device)


def _sgd_step(
    weight: Tensor, gradient: Tensor, buffer: Tensor | None, momentum: float, weight_decay: float, nesterov: bool
) -> Tensor:
    """The direction in which torch's SGD moves a weight, before the learning rate."""
    gradient = gradient.add(weight.detach(), alpha=weight_decay)
    average = gradient if buffer is None else gradient.add(buffer, alpha=momentum)
    return gradient.add(average, alpha=momentum) if nesterov else average


def _split(
    gradients: Sequence[Tensor | None], structure: Sequence[nn.Parameter]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    return list(gradients[: len(structure)]), list(gradients[len(structure) :])


def _norm(parts: Sequence[Tensor | None], like: Tensor) -> Tensor:
    norms = [torch.linalg.vector_norm(p, dtype=torch.float64).to(like.device) for p in parts if p is not None]
    return torch.stack(norms).norm() if norms else like.new_zeros((), dtype=torch.float64)


def _exact_product(
    gradients: Sequence[Tensor | None],
    v: Sequence[Tensor | None],
    structure: Sequence[nn.Parameter],
    repeat: Callable[[], Any],
    module: nn.Module | None,
) -> list[Tensor | None]:
    """[d^2 L_tr / da dw] v from the gradients grad_w L_tr and their graph."""
    pairs = [(g, p) for g, p in zip(gradients, v, strict=True) if g is not None and p is not None and g.requires_grad]
    if not pairs:
        return [None] * len(structure)
    if (hidden := hidden_error(g for g, _ in pairs)) is not None:
        raise refusal(hidden, module, repeat)
    try:
        return list(torch.autograd.grad([g for g, _ in pairs], structure, [p for _, p in pairs], allow_unused=True))
    except RuntimeError as error:
        if not lacks_double_backward(error):
            raise
        raise refusal(error, module, repeat) from error


def _central_difference(
    run: _Passes,
    train_loss: Callable[[], Tensor],
    structure: Sequence[nn.Parameter],
    v: Sequence[Tensor | None],
    epsilon: float,
) -> list[Tensor | None]:
    """[grad_a L_tr(w + eps v) - grad_a L_tr(w - eps v)] / (2 eps)."""
    sides: list[tuple[Tensor | None, ...]] = []
    for sign in (1.0, -1.0):
        run.move(v, sign * epsilon)
        sides.append(torch.autograd.grad(run(train_loss), structure, allow_unused=True))
    run.restore_weights()
    return [
        None if up is None or down is None else (up - down) / (2.0 * epsilon) for up, down in zip(*sides, strict=True)
    ]
