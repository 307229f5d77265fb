"""The fused supernet of every space against the plain one: outputs, gradients, second derivatives and statistics."""

import contextlib
import copy
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_and_fused import CLOSELY, HUB, MODES, OURS, built, compare, passed, slow_but_for, supernet

from nni_bayes_nas.layers.twice import DifferentiatedTwice


@pytest.mark.parametrize(
    ("name", "per_object", "stack"),
    [
        pytest.param(*case, marks=() if case[0] in CLOSELY or case[1:] == (True, False) else pytest.mark.slow)
        for case in itertools.product([*OURS, *HUB], (False, True), (False, True))
    ],
)
def test_fused_equals_plain(name, per_object, stack, example):
    space, shape = built(name, example)
    net, binding = supernet(space, shape)
    x = torch.randn(3, *shape, dtype=torch.float64)
    # NNI's AutoFormer alone has no running statistics.
    assert compare(net, binding, x, per_object=per_object, stack=stack) or name == "AutoformerSpace"
    net.eval()
    assert not compare(net, binding, x, per_object=per_object, stack=stack)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(OURS),
    channels=st.integers(1, 3),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
    batch=st.integers(2, 4),
    per_object=st.booleans(),
    stack=st.booleans(),
    training=st.booleans(),
)
def test_our_spaces_at_any_shape(name, channels, size, batch, per_object, stack, training, example):
    any_shape(name, example, (channels, *size), batch, training, per_object=per_object, stack=stack)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(HUB),
    size=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    batch=st.integers(2, 4),
    per_object=st.booleans(),
    stack=st.booleans(),
    training=st.booleans(),
)
def test_the_hub_at_any_shape(name, size, batch, per_object, stack, training, example):
    shape = {
        "AutoformerSpace": None,  # made for one size
        "NasBench201": (3, *(4 * (n // 4 + 1) for n in size)),  # its two ways to halve an image must agree
    }.get(name, (3, *size))
    # In one order in memory: deep networks on a pixel or two normalize what rounding makes of it.
    how = {"per_object": per_object, "stack": stack, "as_they_come": False}
    any_shape(name, example, shape, batch, training, **how)


def any_shape(name, example, shape, batch, training, **how):
    space, shape = built(name, example, shape)
    net, binding = supernet(space, shape)
    net.train(training)
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    compare(net, binding, x, **how)


@pytest.mark.parametrize("stack", [False, True])
@pytest.mark.parametrize("name", slow_but_for([*OURS, "DARTS", "NasBench201"], OURS))
def test_second_derivatives_are_equal(name, stack, example):
    """Those of torch's own layers, and those of the layers that the second order takes."""
    space, shape = built(name, example)
    net, binding = supernet(space, shape)
    x = torch.randn(2, *shape, dtype=torch.float64)
    for per_object, block in itertools.product((False, True), (contextlib.nullcontext, DifferentiatedTwice)):
        compare(net, binding, x, per_object=per_object, stack=stack, block=block, twice=True, tolerance=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("per_object", [False, True])
@pytest.mark.parametrize("name", slow_but_for([*OURS, *HUB], CLOSELY))
def test_single_precision_differs_by_rounding(name, per_object, training, example):
    """Fused is as near to double precision as plain is."""
    space, shape = built(name, example)
    net, binding = supernet(space, shape, torch.float32)
    net.train(training)
    start = copy.deepcopy(net.state_dict())

    def run(execution, dtype):
        net.to(dtype).load_state_dict(start)
        x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        # One order in memory: torch rounds differently in another.
        return passed(net, binding, x, execution=execution, per_object=per_object, as_they_come=False)

    exact = run("plain", torch.float64)
    errors = {
        execution: [
            float((a - b).norm() / (1e-3 + b.norm())) for a, b in zip(run(execution, torch.float32), exact, strict=True)
        ]
        for execution in MODES
    }
    if training and name not in CLOSELY:
        # Statistics of few pixels: in either mode rounding pushes some over the kink of a ReLU, where gradients jump.
        errors = {execution: values[:1] for execution, values in errors.items()}
    assert 0 < max(errors["plain"]) < 1e-2
    assert max(errors["fused"]) <= 4 * max(errors["plain"])
    assert sum(errors["fused"]) <= 2 * sum(errors["plain"])


@pytest.mark.parametrize("name", slow_but_for([*OURS, *HUB], CLOSELY))
def test_a_checkpoint_goes_on_in_the_other_mode(name, example):
    """A step in one mode; from what it leaves behind, the next step's loss is the same in either."""
    shape = built(name, example)[1]
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3))
    nets = {execution: supernet(built(name, example)[0], shape, torch.float32, execution) for execution in MODES}
    for first, second in (MODES[::-1], MODES):
        net, binding = nets[first]
        output, *gradients = passed(net, binding, x, execution=first, per_object=True)
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients[len(binding.units) :], strict=True):
                parameter.sub_(gradient, alpha=1e-3)
        nets[second][0].load_state_dict(net.state_dict())
        stays, changes = (
            float(passed(*nets[mode], x, execution=mode, per_object=True)[0].square().mean())
            for mode in (first, second)
        )
        assert changes == pytest.approx(stays, rel=1e-5, abs=1e-5)
        assert stays != pytest.approx(float(output.square().mean()), rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("per_object", [False, True])
@pytest.mark.parametrize("name", CLOSELY)
def test_on_a_gpu(name, per_object, example):
    """Equal operations run as one there; images large enough for pointwise convolutions as products."""
    space, shape = built(name, example, None if name == "dense" else (3, 16, 16) if name in HUB else (1, 16, 16))
    net, binding = supernet(space, shape)
    x = torch.randn(8, *shape, dtype=torch.float64).cuda()
    assert compare(net.cuda(), binding, x, per_object=per_object)
