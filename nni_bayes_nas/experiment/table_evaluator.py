"""A benchmark table in the place of trainings, for strategies of NNI that try one architecture after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nni
from nni.mutable import Sample
from nni.nas.evaluator import Evaluator
from nni.nas.space import ExecutableModelSpace

from nni_bayes_nas.errors import SpaceError
from nni_bayes_nas.experiment.benchmark_table import BenchmarkTable
from nni_bayes_nas.registry import resolve


@nni.trace
class TableEvaluator(Evaluator):  # type: ignore[misc]
    """Reports a column of a table as the result of every architecture.

    ::

        evaluator = TableEvaluator("nasbench201.csv.gz", "c10_val_12")
        engine = SequentialExecutionEngine(max_model_count=20)
        RegularizedEvolution(population_size=10, sample_size=3)(RawFormatModelSpace(space, evaluator), engine)

    NNI's own tables (`nni.nas.benchmark`) need its data base of every training curve, and the package peewee.

    Args:
        path: Of the table, as `BenchmarkTable` takes it.
        column: Of the result. NNI's strategies take larger ones as better, but for TPE, which must be told
            (`optimize_mode="maximize"`).
        name: Gives the name of an architecture in the table from its choices: package.module:function.
        key: Column of the names.

    Attributes:
        table: The table.
        column: As above.
        name: The function.

    Raises:
        ConfigError: `name` is no function, or the table has no such column.
        DataError: There is no such table, or it is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        column: str,
        name: str = "nni_bayes_nas.search_spaces.nasbench201:to_arch_string",
        key: str = "arch",
    ) -> None:
        super().__init__()
        self.column = column
        self.table = BenchmarkTable(path, key)
        self.table.value(next(iter(self.table)), column)
        self.name = resolve("names of a table", name, {})

    def extra_repr(self) -> str:
        """For NNI's log."""
        return f"path={str(self.table.path)!r}, column={self.column!r}"

    def value(self, choices: Sample) -> float:
        """The column's value of an architecture; raises as `BenchmarkTable.value`."""
        return self.table.value(self.name(choices), self.column)

    def evaluate(self, model: Sample) -> float:
        """The same, reported to NNI."""
        value = self.value(model)
        nni.report_final_result(value)
        return value

    def _execute(self, model: ExecutableModelSpace) -> Any:
        # NNI would build the network, which nobody needs here.
        if model.sample is None:
            raise SpaceError("an architecture must be chosen before it is looked up, got a space that is not sampled.")
        return self.evaluate(model.sample)
