"""Runs an exported network in a process of its own, where some packages cannot be imported.

A script, started as ``python -P standalone.py PROGRAM INPUTS OUTPUTS BLOCKED``: it imports nothing of this package, and
no more than a user of the exported file needs. INPUTS and OUTPUTS are .npz files with the same names of arrays.
"""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class Block(MetaPathFinder):
    """Refuses to import the packages of these names."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """None: another finder may look; raises for what is blocked."""
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"the exported network must not need `{name}`", name=name)


def main(program: Path, inputs: Path, outputs: Path, blocked: set[str]) -> None:
    """Runs the program on every array of `inputs`."""
    if early := blocked & set(sys.modules):
        raise ImportError(f"{sorted(early)} must not be imported at the start of Python")
    sys.meta_path.insert(0, Block(blocked))
    import numpy as np

    call = _load_pt2(program) if program.suffix == ".pt2" else _load_onnx(program)
    with np.load(inputs) as arrays:
        results = {name: call(arrays[name]) for name in arrays.files}
    np.savez(outputs, **results)


def _load_pt2(program: Path) -> Callable[[Any], Any]:
    import torch

    module = torch.export.load(program).module()

    def call(x: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()

    return call


def _load_onnx(program: Path) -> Callable[[Any], Any]:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        from onnx.reference import ReferenceEvaluator

        reference: Any = ReferenceEvaluator(str(program))
        return lambda x: reference.run(None, {reference.input_names[0]: x})[0]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    runtime = onnxruntime.InferenceSession(str(program), options, providers=["CPUExecutionProvider"])
    name = runtime.get_inputs()[0].name
    return lambda x: runtime.run(None, {name: x})[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), set(sys.argv[4].split(",")))
