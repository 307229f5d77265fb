"""An architecture: one choice for every label of a space, from files too."""

import nni.mutable
import pytest
from nni.nas.nn.pytorch import ModelSpace, MutableConv2d
from torch import nn

from nni_bayes_nas.architecture import Architecture
from nni_bayes_nas.errors import SpaceError


class Kernels(ModelSpace):
    """Two convolutions, one of a pair of sides, the other of a size."""

    def __init__(self):
        super().__init__()
        self.first = MutableConv2d(1, 4, nni.choice("sides", [(3, 3), (1, 5)]))
        self.second = MutableConv2d(4, 4, nni.choice("size", [1, 3]))
        self.head = nn.Linear(4, 2)


class Offsets(Kernels):
    """And two of three offsets."""

    def __init__(self):
        super().__init__()
        self.add_mutable(nni.mutable.CategoricalMultiple([(0, 0), (0, 1), (1, 0)], n_chosen=2, label="offsets"))


def test_options_that_are_tuples_come_back_from_files():
    """JSON has lists in their place."""
    chosen = {"sides": (1, 5), "size": 3}
    given = Architecture(chosen)
    read = Architecture.from_json(given.to_json())
    assert read.key == given.key and read.choices["sides"] == [1, 5]
    for architecture in (given, read):
        network = architecture.build(Kernels())
        assert network.first.kernel_size == (1, 5) and network.second.kernel_size == (3, 3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sides": [5, 1]}, r"must take choices that its space offers: \[5, 1\] not found"),
        ({"sides": 3}, "must take choices that its space offers: 3 not found"),
        ({"size": [3]}, r"must take choices that its space offers: \[3\] not found"),
        ({"offsets": [[0, 0]]}, "must take choices that its space offers"),
        ({"width": 3}, r"may choose labels of its space only, but \['width'\] are unknown"),
    ],
)
def test_choices_that_cannot_be(change, match):
    choices = {"sides": [3, 3], "size": 1, "offsets": [[0, 0], [0, 1]]}
    Architecture(choices).check(Offsets())
    with pytest.raises(SpaceError, match=match):
        Architecture({**choices, **change}).check(Offsets())
