"""Stands in for NVML's Python module: STUB_GPUS idle GPUs, and what NNI's collector asks about them."""

import os
from types import SimpleNamespace
from typing import Any


def nvmlInit() -> None:
    if "STUB_GPUS" not in os.environ:
        raise RuntimeError("NVML Shared Library Not Found")


def nvmlShutdown() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return int(os.environ["STUB_GPUS"])


def nvmlSystemGetDriverVersion() -> str:
    return "0"


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return 12000


def nvmlSystemGetProcessName(pid: int) -> str:
    return ""


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetUUID(device: int) -> str:
    return f"GPU-{'abcdefgh'[device] * 2}-{device}"


def nvmlDeviceGetName(device: int) -> str:
    return f"stub {device}"


def nvmlDeviceGetNumGpuCores(device: int) -> int:
    return 1


def nvmlDeviceGetMemoryInfo(device: int) -> Any:
    return SimpleNamespace(total=2**30, free=2**30)


def nvmlDeviceGetUtilizationRates(device: int) -> Any:
    return SimpleNamespace(gpu=0, memory=0)


def nvmlDeviceGetComputeRunningProcesses_v3(device: int) -> list[Any]:
    return []


def nvmlDeviceGetGraphicsRunningProcesses_v3(device: int) -> list[Any]:
    return []
