"""A table in the place of trainings: what strategies of NNI see of it."""

import itertools

import pytest
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import GridSearch, Random, RegularizedEvolution

from nni_bayes_nas.errors import ConfigError, DataError, SpaceError
from nni_bayes_nas.experiment.table_evaluator import TableEvaluator
from nni_bayes_nas.search_spaces.cell import CellSpace
from nni_bayes_nas.search_spaces.nasbench201 import NasBench201Space, from_arch_string, to_arch_string

OPERATIONS = ("skip_connect", "nor_conv_3x3")


def worth(arch):
    """Convolutions, the later ones more, so that no two cells are equal."""
    return sum(2.0**i for i, part in enumerate(arch.replace("+", "").split("|")) if part.startswith("nor_conv"))


@pytest.fixture
def path(tmp_path):
    labels = list(from_arch_string("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"))
    archs = [to_arch_string(dict(zip(labels, each, strict=True))) for each in itertools.product(OPERATIONS, repeat=6)]
    lines = [f"{arch},{worth(arch)}\n" for arch in archs]
    (tmp_path / "table.csv").write_text("arch,accuracy\n" + "".join(lines), encoding="utf-8")
    return tmp_path / "table.csv"


def space(operations=OPERATIONS):
    return NasBench201Space(width=2, cells_per_stage=1, operations=operations)


def test_every_architecture_gets_its_value(path):
    engine = SequentialExecutionEngine()
    # Shuffled ones share one sample (NNI 3.0), which is empty in the end.
    strategy = GridSearch(shuffle=False)
    strategy(RawFormatModelSpace(space(), TableEvaluator(path, "accuracy")), engine)
    found = [model.metric for model in engine.list_models()]
    assert sorted(found) == sorted(worth(arch) for arch in TableEvaluator(path, "accuracy").table)


@pytest.mark.parametrize("strategy", [Random(seed=0), RegularizedEvolution(population_size=8, sample_size=4, seed=0)])
def test_strategies_of_nni_see_the_table(path, strategy):
    engine = SequentialExecutionEngine(max_model_count=20)
    strategy(RawFormatModelSpace(space(), TableEvaluator(str(path), "accuracy")), engine)
    models = list(engine.list_models())
    assert len(models) == 20
    assert all(model.metric == worth(to_arch_string(model.sample)) for model in models)


def test_what_it_cannot_look_up(path):
    evaluator = TableEvaluator(path, "accuracy")
    for other, error, match in (
        (CellSpace(in_channels=1, num_classes=10, n_cells=1, n_nodes=2, width=2), SpaceError, "cell/"),
        (space(("none", "nor_conv_1x1")), ConfigError, "must be one of the 64"),
    ):
        with pytest.raises(error, match=match):
            Random(seed=0)(RawFormatModelSpace(other, evaluator), SequentialExecutionEngine(max_model_count=1))
    with pytest.raises(SpaceError, match="must be chosen before"):
        RawFormatModelSpace(space(), evaluator).execute()
    with pytest.raises(ConfigError, match="column must be one of accuracy, got 'loss'"):
        TableEvaluator(path, "loss")
    with pytest.raises(ConfigError, match="names of a table"):
        TableEvaluator(path, "accuracy", name="no_such_function")
    with pytest.raises(DataError, match="there is none at"):
        TableEvaluator(path.with_name("none.csv"), "accuracy")
