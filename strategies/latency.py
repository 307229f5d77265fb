"""Measure a latency table: the time of every candidate operation of a space, on its real inputs, on this machine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nni_bayes_nas.complexity.latency import FIXED, LatencyTable, clock, median_ms
from nni_bayes_nas.errors import SpaceError

from .cost_walk import CHOICES, Candidate, probe_supernet, shape_key
from .costs import latency_candidates
from .mixed_cell import MixedCell
from .regularized_darts import RegularizedDARTS

# Which axis of the input an argument of NNI's mutable operations is the size of.
_AXES = {"in_channels": 1, "num_features": 1, "in_features": -1, "normalized_shape": -1, "embed_dim": -1}


def measure_latency(
    space: nn.Module,
    input_shape: Sequence[int],
    *,
    batch_size: int = 1,
    repeats: int = 20,
    warmup: int = 5,
    threads: int = 1,
    device: str | torch.device = "cpu",
) -> LatencyTable:
    """Time every candidate operation of a model space, and what all its architectures have, in evaluation mode.

    A candidate is run alone on the input that it gets in the supernet: the median of `repeats` passes after `warmup`
    uncounted ones. Where choices lie inside a candidate, their time is taken off: they have entries of their own. So is
    the time of summing and concatenating between candidates, in `fixed` too; a real network takes somewhat longer than
    the sum of its entries. Equal candidates (place, name and input shape) are timed once.
    Other work on the machine shows in the entries: measure when there is none.

    Args:
        space: A model space; it is turned into a supernet in place, so give a fresh instance.
        input_shape: Shape of one object, without the batch axis.
        batch_size: Objects per pass; the entries are milliseconds per pass.
        repeats: Timed passes.
        warmup: Passes before them.
        threads: Of torch on the CPU, while measuring.
        device: Where to measure.

    Returns:
        A table whose keys are `place/name@shape`, for `write_latency_table`.

    Raises:
        SpaceError: If a choice cannot be relaxed, or an operation with mutable arguments cannot be run alone.

    Example:
        >>> import tempfile
        >>> from nni_bayes_nas.complexity.latency import write_latency_table
        >>> from nni_bayes_nas.search_spaces.chain import ChainSpace
        >>> table = measure_latency(ChainSpace(), (1, 8, 8), repeats=1, warmup=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_latency_table(f"{folder}/latency.yaml", table)
    """
    device = torch.device(device)
    strategy = RegularizedDARTS()
    model = strategy.mutate_model(space).to(device).eval()
    binding = strategy._binding
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        inputs = probe_supernet(model, binding, input_shape, batch_size).inputs
        entries: dict[str, float] = {}
        for candidate in latency_candidates(model, binding):
            arguments = inputs.get(candidate.module)
            if arguments is None:
                continue
            shape = shape_key(arguments)
            key = f"{candidate.place}/{candidate.name}" + (f"@{shape}" if shape else "")
            if key not in entries:
                run = _runner(candidate, arguments, device)
                entries[key] = round(median_ms(run, repeats=repeats, warmup=warmup), 6)
        run = _runner(Candidate("", FIXED, model), inputs[model], device)
        entries[FIXED] = round(median_ms(run, repeats=repeats, warmup=warmup), 6)
    finally:
        torch.set_num_threads(before)
    environment = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": threads,
        "batch_size": batch_size,
        "input_shape": list(input_shape),
        "repeats": repeats,
        "warmup": warmup,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return LatencyTable(entries, environment, "the measured latency table")


def _runner(candidate: Candidate, arguments: tuple[Any, ...], device: torch.device) -> Callable[[], float]:
    """A function that runs the candidate once and says how many seconds it took, choices inside it left out."""
    if candidate.arguments is not None:
        return _alone(candidate, arguments, device)
    module = candidate.module

    def run() -> float:
        with torch.no_grad(), _stopwatch(module, device) as seconds:
            module(*arguments)
        return seconds[0]

    return run


def _alone(candidate: Candidate, arguments: tuple[Any, ...], device: torch.device) -> Callable[[], float]:
    """The same for an operation with mutable arguments, built with the chosen ones."""
    mixed: Any = candidate.module
    assert candidate.arguments is not None
    values = {**mixed.init_arguments, **candidate.arguments}
    operation = mixed.bound_type(**values).to(device).eval()
    given = tuple(_cut(x, values) for x in arguments)
    try:
        with torch.no_grad():
            operation(*given)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SpaceError(
            f"an operation must run alone to be timed, but {candidate.place}/{candidate.name} does not: {error}; "
            "write its line of the latency table by hand."
        ) from error

    def run() -> float:
        with torch.no_grad():
            started = clock(device)
            operation(*given)
            return clock(device) - started

    return run


def _cut(x: Any, values: dict[str, Any]) -> Any:
    """An input of the supernet, which is as wide as the widest architecture, cut to what the operation takes."""
    if not isinstance(x, Tensor):
        return x
    for name, axis in _AXES.items():
        size = values.get(name)
        size = size[-1] if isinstance(size, (list, tuple)) else size
        if isinstance(size, int) and x.dim() > 1 and x.shape[axis] > size:
            x = x.narrow(axis, 0, size)
    return x.contiguous()


@contextmanager
def _stopwatch(module: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Seconds in which the module itself works: it stops inside choices, but not in what surrounds a cell's nodes."""
    seconds, last = [0.0], [0.0]
    # What lies below a choice on the stack says whether the clock ran around it.
    running = [True]

    def switch(state: list[bool]) -> None:
        now = clock(device)
        if running[-1]:
            seconds[0] += now - last[0]
        running[:] = state
        last[0] = clock(device)

    def stop(*_: Any) -> None:
        switch([*running, False])

    def go_on(*_: Any) -> None:
        switch([*running, running[-2]])

    def leave(*_: Any) -> None:
        switch(running[:-1])

    handles = []
    for inner in module.modules():
        if isinstance(inner, CHOICES):
            handles += [inner.register_forward_pre_hook(stop), inner.register_forward_hook(leave)]
        if isinstance(inner, MixedCell):
            for part in (inner.preprocessor, inner.postprocessor):
                if isinstance(part, nn.Module) and not isinstance(part, CHOICES):
                    handles += [part.register_forward_pre_hook(go_on), part.register_forward_hook(leave)]
    last[0] = clock(device)
    try:
        yield seconds
        switch(running)
    finally:
        for handle in handles:
            handle.remove()
