"""Whether Adam can take its step in one pass over all parameters."""

from __future__ import annotations

import torch

FUSED = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)
"""The argument `fused` of torch's Adam: on a CPU it has it since 2.6. Of many small parameters a step takes a third."""
