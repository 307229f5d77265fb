"""NNI strategies: structure distributions bound to NNI's choices. Import as `nni_bayes_nas.strategies`.

They are loaded on first use: they need torch, Lightning and NNI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "nni_bayes_nas.strategies":
    raise ImportError("import nni_bayes_nas.strategies, not strategies")

if TYPE_CHECKING:
    from .dirichlet_darts import DirichletDARTS as DirichletDARTS
    from .hyper_darts import HyperDARTS as HyperDARTS
    from .regularized_darts import RegularizedDARTS as RegularizedDARTS

__all__ = ["DirichletDARTS", "HyperDARTS", "RegularizedDARTS"]


def __getattr__(name: str) -> Any:
    if name == "DirichletDARTS":
        from .dirichlet_darts import DirichletDARTS

        return DirichletDARTS
    if name == "HyperDARTS":
        from .hyper_darts import HyperDARTS

        return HyperDARTS
    if name == "RegularizedDARTS":
        from .regularized_darts import RegularizedDARTS

        return RegularizedDARTS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
