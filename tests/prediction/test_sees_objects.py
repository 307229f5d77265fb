"""What a meta-model is told by the objects of a task alone: all numbers about the tasks are equal."""

from dataclasses import replace

import pytest
import torch
from test_meta import meta

from nni_bayes_nas.prediction.encoder import condition_of
from nni_bayes_nas.prediction.sparse_architecture import from_sources

# Classes by |x_0|, for which the first feature is enough, or by the sign of x_0 x_1, which needs both.
NETS = (
    from_sources(2, 2, (2,), ("relu",), [[(0,), (0,)], [(0, 1), (0, 1)]]),
    from_sources(2, 2, (2,), ("tanh",), [[(0, 1), (0, 1)], [(0, 1), (0, 1)]]),
)


def task(rule, seed):
    """No feature has a separation; what else is said of the data is taken away."""
    x = torch.randn(48, 2, generator=torch.Generator().manual_seed(seed))
    score = x[:, 0] * x[:, 1] if rule else x[:, 0].abs()
    y = (score > score.median()).long()
    found = condition_of(x, y, 12, max_features=8, max_classes=4, order=torch.arange(2))
    return replace(found, scalars=torch.zeros_like(found.scalars))


@pytest.mark.parametrize(
    ("kind", "steps"), [("seq2seq", 150), pytest.param("doubly recurrent", 400, marks=pytest.mark.slow)]
)
def test_tasks_that_differ_in_nothing_but_their_objects_get_other_networks(kind, steps):
    model = meta(kind)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    tasks, nets = [task(i % 2, i) for i in range(64)], [NETS[i % 2] for i in range(64)]
    for step in range(steps):
        batch = [(16 * step + i) % 64 for i in range(16)]
        optimizer.zero_grad()
        model.losses([tasks[i] for i in batch], [nets[i] for i in batch]).mean().backward()
        optimizer.step()
    generator, new = torch.Generator().manual_seed(0), [task(i % 2, 1_000 + i) for i in range(20)]
    right = sum(model.sample(one, 1, generator, 0.0)[0][0] == NETS[i % 2] for i, one in enumerate(new))
    assert right >= 17
    with torch.no_grad():
        swapped = [replace(one, objects=new[i ^ 1].objects) for i, one in enumerate(new)]
        own, others = (float(model.losses(each, nets[:20]).mean()) for each in (new, swapped))
    assert others > own + 1.0
