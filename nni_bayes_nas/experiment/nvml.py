"""Which GPUs NNI may give to trials, and how it is told: the part of `nni_compat` that asks NVML."""

import contextlib
import os
from typing import Any


def visible_gpus() -> int:
    """How many GPUs NNI's scheduler may use: those of NVML, less those that ``CUDA_VISIBLE_DEVICES`` hides.

    - nni/tools/nni_manager_scripts/collect_gpu_info.py asks ``pynvml``; with ``trialGpuNumber`` set and no NVML the
      manager shuts itself down after some seconds ("TaskScheduler: Failed to collect GPU info").
    - nni_node/core/nnimanager.js (setupTuner) hides every GPU from the dispatcher, by an empty variable: there it
      says nothing about the trials.
    """
    uuids = _gpu_uuids()
    if os.environ.get("CUDA_VISIBLE_DEVICES") is None or os.environ.get("SDK_PROCESS") == "dispatcher":
        return len(uuids)
    return min(len(uuids), len(_visible_devices(uuids)))


def installed_gpus() -> int:
    """How many NVML has, hidden ones too."""
    return len(_gpu_uuids())


def _gpu_uuids() -> list[str]:
    """The UUIDs of NVML's GPUs, by index; an empty list without NVML."""
    try:
        import pynvml  # type: ignore[import-untyped]

        pynvml.nvmlInit()
    except Exception:  # NVML's errors have no common base in all versions; any of them means: no GPU to schedule on
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(int(pynvml.nvmlDeviceGetCount()))]
        found = [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
        return [uuid.decode() if isinstance(uuid, bytes) else str(uuid) for uuid in found]
    except Exception:
        return []
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _visible_devices(uuids: list[str]) -> list[int | str]:
    """What ``CUDA_VISIBLE_DEVICES`` names: GPUs by NVML's index, MIG devices, which have none, by name."""
    found: list[int | str] = []
    for name in [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]:
        if name.isdigit():
            found += [int(name)] if int(name) < len(uuids) else []
        elif name.startswith("GPU-"):
            # CUDA takes any beginning of a UUID that means one GPU only.
            indices = [index for index, uuid in enumerate(uuids) if uuid.startswith(name)]
            found += indices if len(indices) == 1 else []
        elif name.startswith("MIG-"):
            found.append(name)
    return found


def gpu_schedule(gpus: int, device: str) -> dict[str, Any]:
    """The keys of NNI's local training service that give each trial a GPU of its own; none without a GPU.

    None either where ``CUDA_VISIBLE_DEVICES`` names a MIG device: then trials must run one at a time.

    - nni_node/common/trial_keeper/task_scheduler/scheduler.js refuses ``gpuNumber >= gpus.length``: on a machine with
      ONE GPU a trial that asks for one waits for ever ("Only have 1 GPUs, requesting 1"). There we ask for half of
      it; the concurrency of 1 keeps it whole.
    - ``useActiveGpu`` must be set with ``trialGpuNumber``, and False waits for ever on a machine with a desktop.
    - The scheduler numbers GPUs as NVML does and knows nothing of ``CUDA_VISIBLE_DEVICES``.

    Args:
        gpus: What ``visible_gpus`` said.
        device: ``experiment.device``: auto, cpu or gpu.
    """
    if gpus == 0 or device == "cpu":
        return {}
    devices = _visible_devices(_gpu_uuids()) if os.environ.get("CUDA_VISIBLE_DEVICES") else []
    if any(isinstance(one, str) for one in devices):
        # MIG devices cannot be handed to NNI's scheduler: the trial inherits the variable and takes the first of them.
        return {}
    schedule: dict[str, Any] = {"trial_gpu_number": 1, "use_active_gpu": True}
    if devices:
        schedule["gpu_indices"] = devices
    if gpus == 1:
        schedule["max_trial_number_per_gpu"] = 2
    return schedule
