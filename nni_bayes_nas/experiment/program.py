"""A network as a torch.export or ONNX program of plain tensors, its scaling of inputs and outputs inside."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

# Bytes of constants that are computed when the program is written.
_SMALL = 256


class Scaled(nn.Module):
    """A network behind the standardization of its inputs, and before the return of its outputs to the data's units.

    y = network((x − mean) / sd) · target_sd + target_mean

    Args:
        network: Takes standardized objects `(batch, *shape)`, gives `(batch, outputs)`.
        inputs: Mean and sd of the training set, broadcast with `(batch, *shape)`; None: inputs come standardized.
        targets: Mean and sd of the training set's targets; None: outputs stay as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        inputs: tuple[Tensor, Tensor] | None = None,
        targets: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.mean: Tensor | None
        self.sd: Tensor | None
        mean, sd = inputs or (None, None)
        self.register_buffer("mean", mean)
        self.register_buffer("sd", sd)
        self.targets = targets

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, *shape)` -> `(batch, outputs)`."""
        if self.mean is not None and self.sd is not None:
            x = (x - self.mean) / self.sd
        y: Tensor = self.network(x)
        if self.targets is not None:
            mean, sd = self.targets
            y = y * sd + mean
        return y


def write_program(network: nn.Module, x: Tensor, path: Path) -> None:
    """Traces the network by torch.export with a dynamic batch dimension and writes it.

    Args:
        network: In evaluation mode.
        x: Objects `(batch, *shape)`, at least 2: a batch of 1 would be taken for a constant.
        path: Of the file; the suffix is .pt2 (torch.export) or .onnx.

    Raises:
        Exception: Whatever torch.export or torch.onnx raises at a network that it cannot trace.
    """
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                # The paths of this machine's source files are no part of a network.
                node.meta.pop("stack_trace", None)
    # Nor is what it was traced with, which the file would hold.
    program.example_inputs = ((torch.zeros_like(x),), {})
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        _deflate(path)
        return
    onnx = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=["x"], output_names=["output"], optimize=False
    )
    if onnx is None:
        raise RuntimeError("torch.onnx.export gave no program")
    from onnxscript import optimizer

    # Constants as large as weights stay as they are: places of packed ones, unpacked, have eight times their length.
    optimizer.optimize(onnx.model, input_size_limit=_SMALL)
    for node in onnx.model.graph.all_nodes():
        node.metadata_props.clear()
    onnx.save(path, external_data=False)


def _deflate(path: Path) -> None:
    """The same archive, compressed: the text of the program would weigh as much as a network that is nearly empty."""
    stored = path.rename(path.with_name(f"{path.name}.stored"))
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
    stored.unlink()
