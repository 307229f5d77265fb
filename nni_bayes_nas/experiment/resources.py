"""How many trials run at a time, with how many threads, and on what."""

import os
from dataclasses import dataclass

from nni_bayes_nas.config import ExperimentConfig
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment import nni_compat, nvml

# What libraries read when they are imported.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Resources:
    """What a run may use: ``gpus`` is 0 where the trials run on the CPU."""

    gpus: int
    concurrency: int
    threads: int

    @classmethod
    def choose(cls, config: ExperimentConfig, gpus: int | None = None) -> "Resources":
        """Fills in what the configuration leaves open; never more trials at a time than GPUs to give to each.

        Args:
            config: Of the experiment.
            gpus: How many the run has, where that is known: from the dispatcher NNI hides what the user hides.

        Raises:
            ConfigError: A GPU is demanded and there is none.
        """
        if gpus is None:
            gpus = 0 if config.device == "cpu" else nvml.visible_gpus()
        if config.device == "gpu" and gpus == 0:
            raise ConfigError(
                "`experiment.device` gpu needs a GPU that NVML sees, there is none\n"
                "set it to auto or cpu, or check nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        cores = _cores()
        given = nni_compat.experiment_parameters().get("trialConcurrency")
        if given:
            # In the dispatcher: it was decided at the start, by us or by the YAML that nnictl was given.
            concurrency = int(given)
        elif gpus:
            most = gpus if nvml.gpu_schedule(gpus, config.device) else 1
            concurrency = min(config.concurrency or most, most)
        else:
            concurrency = config.concurrency or min(2, cores)
        return cls(gpus, concurrency, config.threads or max(1, cores // concurrency))

    def notes(self, config: ExperimentConfig) -> list[str]:
        """What of the configuration, or of the environment, does not come about: a line each."""
        said, hidden = [], os.environ.get("CUDA_VISIBLE_DEVICES")
        if config.concurrency is not None and config.concurrency > self.concurrency:
            n = f"{self.gpus} GPU(s)" if self.gpus else "the experiment"
            said.append(f"experiment.concurrency {config.concurrency} is more than {n} can have: {self.concurrency}")
        if config.device == "auto" and not self.gpus and hidden and (there := nvml.installed_gpus()):
            said.append(f"CUDA_VISIBLE_DEVICES={hidden} names none of {there} GPU(s): the run is on the CPU")
        return said


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
