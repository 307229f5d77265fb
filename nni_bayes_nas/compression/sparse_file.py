"""A pruned network on disk: what is not zero, and one bit for each place that says whether it is.

The file is a NumPy archive. Of a tensor NAME that is mostly zeros it holds "NAME/values", "NAME/bits" (np.packbits of
what is not zero) and "NAME/shape"; of another one "NAME". NumPy alone reads it: `load_sparse` is five lines.
"""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nni_bayes_nas.compression.pruning import make_permanent
from nni_bayes_nas.errors import ConfigError

_WORTH_IT = 0.5


def save_sparse(network: nn.Module, path: str | Path) -> Path:
    """Writes the state dict of a network, masks applied, compressed.

    Args:
        network: Pruned; it is left alone.
        path: Ends in .npz.

    Raises:
        ConfigError: Another suffix.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ConfigError(f"a sparse network is a NumPy archive, its name must end in .npz, got {path.name!r}.")
    plain = copy.deepcopy(network)
    make_permanent(plain)
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in plain.state_dict().items():
        value = tensor.detach().cpu().numpy()
        present = value != 0
        if value.size and present.mean() < _WORTH_IT:
            arrays |= {f"{name}/values": value[present], f"{name}/bits": np.packbits(present)}
            arrays[f"{name}/shape"] = np.array(value.shape)
        else:
            arrays[name] = value
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a plain network.

    Raises:
        ConfigError: The file is no such archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        state = {}
        for name in [key.removesuffix("/bits") for key in arrays if not key.endswith(("/values", "/shape"))]:
            if f"{name}/bits" in arrays:
                shape = tuple(arrays[f"{name}/shape"])
                value = np.zeros(int(np.prod(shape)), arrays[f"{name}/values"].dtype)
                value[np.unpackbits(arrays[f"{name}/bits"], count=value.size) == 1] = arrays[f"{name}/values"]
                state[name] = torch.from_numpy(value.reshape(shape))
            else:
                state[name] = torch.from_numpy(arrays[name])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} must be what save_sparse wrote, but: {error}.") from error
    return state
