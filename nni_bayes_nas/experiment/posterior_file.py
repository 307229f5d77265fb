"""What a search leaves of its posterior, `posterior.json`, and a refinement of it in `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nni_bayes_nas.bayes.candidates import CandidatePosterior
from nni_bayes_nas.bayes.posterior import Merged
from nni_bayes_nas.errors import ConfigError
from nni_bayes_nas.experiment.packed import unpack
from nni_bayes_nas.experiment.record import read_json

MERGED_AT_MOST, _NETWORKS = 20_000, 20


def posterior_file(strategy: Any, derived: list[dict[str, Any]], networks: Sequence[Merged] = ()) -> dict[str, Any]:
    """The posterior; over lambda that of the large end, and "by_lambda" those at which architectures were read off.

    Args:
        strategy: That has searched.
        derived: What was read off.
        networks: All of the space, the most probable first, where architectures that compute the same are known:
            "networks" says how many there are, and rows "probability", "forms" and "choices" of the first ones.
    """
    q = strategy.posterior()
    lambdas = [row["lambda"] for row in derived if row["lambda"] is not None]
    rows = [{"lambda": lam, **strategy.posterior(lam).to_dict()} for lam in lambdas]
    return {**q.to_dict(), **_networks(networks), **({"by_lambda": rows} if rows else {})}


def refined_posterior(run: Path, search: str = "s0") -> CandidatePosterior:
    """The posterior of a search that short trainings have refined, from the run folder of the plan.

    Args:
        run: The run folder.
        search: Id of the search.

    Raises:
        ConfigError: No run, no such search, or one that is not refined (yet).
    """
    summary = read_json(run / "summary.json")
    accounts = (summary.get("refinement") or {}) if isinstance(summary, dict) else {}
    account = accounts.get(search) or {}
    if "process" not in account or "candidates" not in account:
        raise ConfigError(
            f"`{run}` must hold a refined posterior of search {search}, but it has those of "
            f"{', '.join(sorted(k for k, v in accounts.items() if 'process' in v)) or 'none'}\n"
            "run the plan posterior_refinement to its end"
        )
    choices = [row["choices"] for row in unpack(account["candidates"])]
    process = account["process"]
    return CandidatePosterior(choices, process["probability_best"], process["mean"], process["sd"])


def _networks(merged: Sequence[Merged]) -> dict[str, Any]:
    if not merged:
        return {}
    rows = [{"probability": m.probability, "forms": m.members, "choices": m.choices} for m in merged[:_NETWORKS]]
    return {"networks": {"count": len(merged), "most_probable": rows}}
