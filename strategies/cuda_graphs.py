"""The passes of a search step as CUDA graphs: a small supernet spends its time on a GPU in starting kernels."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from nni_bayes_nas.errors import ConfigError, SpaceError
from nni_bayes_nas.precision import Autocast

from .passes import mixture_through
from .supernet import Binding

# Passes before a recording: libraries choose their kernels, and set themselves up, in the first ones.
_WARM_UP = 3


@contextlib.contextmanager
def graphed(net: Any, binding: Binding, record: Callable[..., Any] | None = None) -> Iterator[None]:
    """Inside the block a supernet trains as a mixture through CUDA graphs, and is itself everywhere else.

    The first pass of each kind (for gradients of the mixing weights, or of the network's) is recorded, forward and
    backward, and those of the same shape and precision are replayed; others, such as a smaller last batch, run as they
    are. It is recorded anew when the parameters have moved, or a number that a layer holds has changed, as a drop-path
    probability does from epoch to epoch.

    A replayed pass writes where the one before it wrote. So the passes of which a loss is the mean, `n_passes` of the
    binding, are recorded together, one graph for each, and their backward pass must be over before they are repeated.

    Gradients of parameters are put into their `.grad` past autograd: `loss.backward()` finds them, `autograd.grad` for
    parameters does not, and there are no second derivatives.

    Args:
        net: The supernet.
        binding: Its own.
        record: What records; `recorded`.
    """
    with mixture_through(_Passes(net, binding, record or recorded), net, binding):
        yield


class _Passes:
    """The recorded passes of one supernet, by kind."""

    def __init__(self, net: Any, binding: Binding, record: Callable[..., Any]) -> None:
        self._net, self._binding, self._recorded = net, binding, record
        self._parameters = list(net.parameters())
        self._numbers = [
            (values, names) for values, names in ((vars(m), _numbers_of(m)) for m in net.modules()) if names
        ]
        self._state: Any = None
        self._known: dict[tuple[bool, ...], tuple[Any, Iterator[Any]]] = {}
        self._pool: Any = None

    def __call__(self, weights: Mapping[str, Tensor], *inputs: Tensor) -> Any:
        """A pass with the given mixing weights."""
        state = [p.data_ptr() for p in self._parameters], [v[n] for v, names in self._numbers for n in names]
        if state != self._state:
            self._known.clear()
            self._state, self._pool = state, None
        arguments = *inputs, *weights.values()
        kind = tuple(a.requires_grad for a in arguments)
        shapes = [(a.shape, a.dtype, a.stride()) for a in arguments]
        form = tuple(weights), shapes, Autocast.now(inputs[0].device.type), self._binding.n_passes
        if kind not in self._known:
            self._known[kind] = form, itertools.cycle(self._record(tuple(weights), arguments))
        known, runs = self._known[kind]
        if form != known:
            return type(self._net).forward(self._net, *inputs)
        return next(runs)(*arguments)

    def _record(self, labels: tuple[str, ...], arguments: tuple[Tensor, ...]) -> Any:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Gradients that autograd does not see do not travel.
            raise ConfigError("cuda_graphs needs a search on one GPU, but several processes take part; leave it out.")
        cuda, n = arguments[0].is_cuda, self._binding.n_passes
        # Recording runs a few passes: afterwards statistics and noise are as before.
        buffers = [(b, b.clone()) for b in self._net.buffers()]
        noise = torch.cuda.get_rng_state() if cuda else torch.get_rng_state()
        if cuda and self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        mixture = _Mixture(self._net, self._binding, labels)
        samples = [[a.detach().clone().requires_grad_(a.requires_grad) for a in arguments] for _ in range(n)]
        try:
            return self._recorded(mixture, samples, self._pool)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise SpaceError(
                f"cuda_graphs needs networks that run on the GPU alone, but recording one fails: {said}; "
                "leave cuda_graphs out."
            ) from error
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            torch.cuda.set_rng_state(noise) if cuda else torch.set_rng_state(noise)


class _Mixture(nn.Module):
    """A supernet as a function of its inputs and the mixing weights."""

    def __init__(self, net: nn.Module, binding: Binding, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.net = net
        self._binding, self._labels = binding, labels

    def forward(self, *arguments: Tensor) -> Any:
        """What the supernet gives."""
        n_inputs = len(arguments) - len(self._labels)
        before = self._binding.weights
        self._binding.weights = dict(zip(self._labels, arguments[n_inputs:], strict=True))
        try:
            return type(self.net).forward(self.net, *arguments[:n_inputs])
        finally:
            self._binding.weights = before
            self._binding.heads.forget()  # a hook does it, but for what is called past it


def recorded(module: nn.Module, samples: Sequence[Sequence[Tensor]], pool: Any) -> Sequence[Callable[..., Any]]:
    """One function for each sample, that does what the module does, forward and backward, by CUDA graphs.

    torch's `make_graphed_callables` hands every parameter's gradient through autograd, which for thousands of small
    ones takes longer than the network: here they become the `.grad` of the parameters at once.

    Args:
        module: The same for all.
        samples: Arguments of each, at addresses of their own, which the graphs keep.
        pool: Memory that the graphs share; they are replayed forward in order, and backward against it.
    """
    graphs = [_Graph(module, sample) for sample in samples]
    side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for graph in graphs:
            for _ in range(_WARM_UP):
                graph.run_forward()
                graph.run_backward()
            graph.let_go()
    torch.cuda.current_stream().wait_stream(side)
    for graph in graphs:
        with torch.cuda.graph(graph.forward, pool=pool):
            graph.run_forward()
    for graph in reversed(graphs):
        with torch.cuda.graph(graph.backward, pool=pool):
            graph.run_backward()
        graph.let_go()
    return graphs


class _Graph:
    """A pass, forward and backward, at fixed addresses."""

    def __init__(self, module: nn.Module, arguments: Sequence[Tensor]) -> None:
        self._module, self._arguments = module, list(arguments)
        self._learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
        # The same memory as leaves of their own: what else autograd knows of the parameters stays out of the graph.
        self._leaves = {name: p.detach().requires_grad_(True) for name, p in self._learning.items()}
        self._asked = [a for a in self._arguments if a.requires_grad]
        self._anchor = torch.zeros((), requires_grad=True)
        self._outputs: list[Tensor] = []
        self._given: list[Tensor] = []
        self._of_arguments: dict[int, Tensor | None] = {}
        self._of_parameters: dict[str, Tensor] = {}
        self.turn = 0
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()

    def run_forward(self) -> None:
        """The pass itself."""
        outputs = torch.func.functional_call(self._module, self._leaves, tuple(self._arguments))
        self._outputs, self._form = tree_flatten(outputs)

    def run_backward(self) -> None:
        """Gradients of what asks for one, for some gradient of the outputs that need one.

        Those of parameters get memory of their own in the first run: what a recording allocates is written to again
        by the next pass, but a `.grad` stays until somebody takes it away.
        """
        self._given = self._given or [torch.zeros_like(o) for o in self._outputs]
        pairs = [(o, g) for o, g in zip(self._outputs, self._given, strict=True) if o.requires_grad]
        differentiable, given = zip(*pairs, strict=True)
        wanted = [*self._asked, *self._leaves.values()]
        found = torch.autograd.grad(differentiable, wanted, given, allow_unused=True)
        self._of_arguments = dict(zip(map(id, self._asked), found, strict=False))
        named = dict(zip(self._leaves, found[len(self._asked) :], strict=True))
        named = {name: g for name, g in named.items() if g is not None}
        if self._of_parameters:
            torch._foreach_copy_(list(self._of_parameters.values()), list(named.values()))
        else:
            self._of_parameters = {name: g.clone() for name, g in named.items()}

    def let_go(self) -> None:
        """Of what autograd holds: addresses alone are needed from now on."""
        self._outputs = [o.detach() for o in self._outputs]
        self._learning = {name: self._learning[name] for name in self._of_parameters}

    def __call__(self, *arguments: Tensor) -> Any:
        """The outputs for other arguments."""
        return tree_unflatten(list(_Replay.apply(self, self._anchor, *arguments)), self._form)

    def replay_forward(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Outputs, in memory of their own."""
        for ours, given in zip(self._arguments, arguments, strict=True):
            ours.detach().copy_(given)
        self.turn += 1
        self.forward.replay()
        return tuple(o.clone() for o in self._outputs)

    def replay_backward(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of the arguments; those of the parameters are added to what they have."""
        for ours, given in zip(self._given, gradients, strict=True):
            ours.zero_() if given is None else ours.copy_(given)
        pairs = list(zip(self._learning.values(), self._of_parameters.values(), strict=True))
        for parameter, gradient in pairs:
            if parameter.grad is gradient:  # of the last pass, which nobody has taken away
                parameter.grad = gradient.clone()
        self.backward.replay()
        more: tuple[list[Tensor], list[Tensor]] = [], []
        for parameter, gradient in pairs:
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                more[0].append(parameter.grad)
                more[1].append(gradient)
        if more[0]:
            torch._foreach_add_(*more)
        found = [self._of_arguments.get(id(a)) for a in self._arguments]
        return [None if g is None else g.clone() for g in found]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: _Graph, anchor: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        ctx.graph = graph
        outputs = graph.replay_forward(arguments)
        ctx.turn = graph.turn
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.turn != ctx.graph.turn:
            raise SpaceError(
                "cuda_graphs needs one pass for each loss, but the network was called again before the first call's "
                "backward pass, and has overwritten it; leave cuda_graphs out."
            )
        return None, None, *ctx.graph.replay_backward(gradients)


def _numbers_of(module: nn.Module) -> list[str]:
    """Attributes of a module that are numbers, and may change from pass to pass."""
    if type(module).__module__.startswith("torch.nn.") and not isinstance(module, nn.modules.dropout._DropoutNd):
        return []
    return [n for n, v in vars(module).items() if isinstance(v, (int, float)) and n != "training"]


def check_cuda_graphs(device: str) -> None:
    """Raise ConfigError where there are no CUDA graphs: on any device, "cpu" or "cuda", but the latter."""
    if device != "cuda":
        raise ConfigError(f"cuda_graphs needs a GPU of NVIDIA, but the search runs on {device!r}; leave it out.")


__all__ = ["check_cuda_graphs", "graphed", "recorded"]
