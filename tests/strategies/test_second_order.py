"""Second order gradient against closed forms, torch's own SGD, and the other way to take it."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from nni_bayes_nas.errors import ConfigError, NumericsError
from nni_bayes_nas.strategies.second_order import hypergradient, step_settings

METHODS: tuple[Literal["exact", "finite_difference"], ...] = ("exact", "finite_difference")
TOLERANCE = {"exact": 1e-10, "finite_difference": 1e-3}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.3},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.3, "buffer": True},
    {"momentum": 0.9, "weight_decay": 0.3, "buffer": True, "nesterov": True},
    {"momentum": 0.9, "nesterov": True},
]


def close(found: Tensor, expected: Tensor, relative: float) -> bool:
    return float((found - expected).norm()) <= relative * float(expected.norm())


class Quadratic:
    """L_tr = (w - A a)' H (w - A a) / 2,   L_val = (w - b)' Q (w - b) / 2 + |a|^2 / 2 + a' C w."""

    def __init__(self, seed: int, n_weights: int = 5, n_structure: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        roots = normal(n_weights, n_weights), normal(n_weights, n_weights)
        self.h, self.q = (r @ r.T + torch.eye(n_weights, dtype=torch.float64) for r in roots)
        self.a_matrix, self.c, self.b = (
            normal(n_weights, n_structure),
            normal(n_structure, n_weights),
            normal(n_weights),
        )
        self.w, self.a = nn.Parameter(normal(n_weights)), nn.Parameter(normal(n_structure))
        self.buffer = normal(n_weights)

    def train(self) -> Tensor:
        residual = self.w - self.a_matrix @ self.a
        return residual @ self.h @ residual / 2

    def val(self) -> Tensor:
        residual = self.w - self.b
        return residual @ self.q @ residual / 2 + self.a @ self.a / 2 + self.a @ self.c @ self.w

    def closed_form(
        self,
        rate: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        buffer: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Loss at w' = w - rate * s and its total derivative: ds/da = -c H A, v = dL_val/dw'."""
        w, a = self.w.detach(), self.a.detach()
        gradient = self.h @ (w - self.a_matrix @ a) + weight_decay * w
        average = momentum * self.buffer + gradient if buffer else gradient
        moved = w - rate * (gradient + momentum * average if nesterov else average)
        share = 1 + momentum if nesterov else 1
        v = self.q @ (moved - self.b) + self.c.T @ a
        loss = (moved - self.b) @ self.q @ (moved - self.b) / 2 + a @ a / 2 + a @ self.c @ moved
        return loss, a + self.c @ moved + rate * share * self.a_matrix.T @ self.h @ v


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_closed_form_of_a_quadratic_problem(method: Any, setting: dict[str, Any]) -> None:
    toy = Quadratic(0)
    options = {k: v for k, v in setting.items() if k != "buffer"}
    buffers = [toy.buffer] if setting.get("buffer") else None
    loss, (gradient,) = hypergradient(
        toy.val, toy.train, [toy.w], [toy.a], learning_rate=0.05, momentum_buffers=buffers, method=method, **options
    )
    expected_loss, expected = toy.closed_form(0.05, **setting)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert close(gradient, expected, TOLERANCE[method])
    # The second order part alone, which a step of 0.05 could hide in the whole.
    direct = toy.a.detach() + toy.c @ self_moved(toy, setting)
    assert close(gradient - direct, expected - direct, TOLERANCE[method])
    assert float((expected - direct).norm()) > 0.1 * float(expected.norm())


def self_moved(toy: Quadratic, setting: dict[str, Any]) -> Tensor:
    """w' by torch's own SGD."""
    w = nn.Parameter(toy.w.detach().clone())
    options = {k: v for k, v in setting.items() if k != "buffer"}
    optimizer = torch.optim.SGD([w], lr=0.05, **options)
    if setting.get("buffer"):
        optimizer.state[w]["momentum_buffer"] = toy.buffer.clone()
    w.grad = toy.h @ (w.detach() - toy.a_matrix @ toy.a.detach())
    optimizer.step()
    return w.detach()


@given(seed=st.integers(0, 10**6), rate=st.floats(1e-3, 1.0), nesterov=st.booleans())
def test_both_methods_agree_with_the_closed_form(seed: int, rate: float, nesterov: bool) -> None:
    toy = Quadratic(seed)
    options: dict[str, Any] = {"momentum": 0.5 if nesterov else 0.0, "weight_decay": 1e-2, "nesterov": nesterov}
    _, expected = toy.closed_form(rate, **options)
    for method in METHODS:
        _, (gradient,) = hypergradient(
            toy.val, toy.train, [toy.w], [toy.a], learning_rate=rate, method=method, **options
        )
        assert close(gradient, expected, TOLERANCE[method])


@pytest.mark.parametrize("method", METHODS)
def test_the_problem_of_the_paper(method: Any) -> None:
    """Figure 2 of Liu, Simonyan & Yang: L_val = a w - 2 a + 1, L_tr = w^2 - 2 a w + a^2; the optimum is (1, 1)."""
    ends = []
    for order in (1, 2):
        w, a = (nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in (-2.0, 2.0))

        def val(w: Tensor = w, a: Tensor = a) -> Tensor:
            return a * w - 2 * a + 1

        def train(w: Tensor = w, a: Tensor = a) -> Tensor:
            return w**2 - 2 * a * w + a**2

        optimizer = torch.optim.SGD([w], lr=0.5)
        for _ in range(400):
            if order == 1:
                gradient = torch.autograd.grad(val(), a)[0]
            else:
                _, (gradient,) = hypergradient(val, train, [w], [a], method=method, learning_rate=0.5)
            with torch.no_grad():
                a -= 0.05 * gradient
            optimizer.zero_grad()
            train().backward()
            optimizer.step()
        ends.append((round(a.item(), 6), round(w.item(), 6)))
    assert ends == [(2.0, 2.0), (1.0, 1.0)]


class Noisy(nn.Module):
    """Three mixed layers under Gumbel noise and dropout, with batch normalization; twice differentiable."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.options = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Identity()])
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 3)
        self.alpha = nn.Parameter(torch.tensor([0.2, -0.3, 0.1]))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        uniform = torch.rand(3, generator=generator, dtype=x.dtype)
        mixing = (self.alpha - (-uniform.log()).log()).softmax(-1)
        x = torch.tanh(self.stem(x))
        x = sum(weight * option(x) for weight, option in zip(mixing, self.options, strict=True))
        return self.head(self.dropout(self.norm(x)))


class Problem:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = Noisy().double()
        self.weights = [p for name, p in self.net.named_parameters() if name != "alpha"]
        self.batches = [(torch.randn(16, 4).double(), torch.randint(3, (16,))) for _ in range(2)]

    def loss(self, which: int, generator: torch.Generator | None = None) -> Callable[[], Tensor]:
        x, y = self.batches[which]
        return lambda: nn.functional.cross_entropy(self.net(x, generator), y)

    def gradient(self, method: Any, generator: torch.Generator | None = None, **options: Any) -> Tensor:
        losses = self.loss(1, generator), self.loss(0, generator)
        options = {"learning_rate": 0.5, "module": self.net} | options
        return hypergradient(*losses, self.weights, [self.net.alpha], method=method, **options)[1][0]


def test_the_passes_share_their_noise() -> None:
    """The quotient divides by 2 eps: with noise of its own in every pass it is noise."""
    problem = Problem()
    exact, quotient = (problem.gradient(method) for method in METHODS)
    first_order = problem.gradient("exact", learning_rate=0.0)
    second = exact - first_order  # L_val at w' differs from that at w, but not by much
    assert float(second.norm()) > 1e-3
    assert close(quotient, exact, 1e-3)
    unshared = problem.gradient("finite_difference", torch.Generator().manual_seed(0))
    again = problem.gradient("exact", torch.Generator().manual_seed(0))
    assert not close(unshared, again, 1.0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_differentiating_through_a_step_of_torch(nesterov: bool) -> None:
    """torch.optim.SGD in its differentiable mode, on weights that hang on the structure through their gradient."""
    problem = Problem()
    options: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}
    names = [name for name, _ in problem.net.named_parameters() if name != "alpha"]
    optimizer = torch.optim.SGD(problem.weights, lr=0.2, **options)
    for _ in range(2):
        problem.loss(0)().backward()
        optimizer.step()
        optimizer.zero_grad()
    settings = step_settings(optimizer, problem.weights)
    state = torch.get_rng_state()
    loss, (gradient,) = hypergradient(
        problem.loss(1), problem.loss(0), problem.weights, [problem.net.alpha], method="exact", **settings
    )

    def at(weights: list[Tensor], which: int) -> Tensor:
        torch.set_rng_state(state)
        x, y = problem.batches[which]
        # Without the running statistics, which both passes would write.
        buffers = {name: buffer.clone() for name, buffer in problem.net.named_buffers()}
        net_state = {**dict(zip(names, weights, strict=True)), "alpha": problem.net.alpha, **buffers}
        return nn.functional.cross_entropy(functional_call(problem.net, net_state, (x,)), y)

    copies = [w.clone() for w in problem.weights]
    unrolled = torch.optim.SGD(copies, lr=0.2, differentiable=True, **options)
    grads = torch.autograd.grad(at(problem.weights, 0), problem.weights, create_graph=True)
    for copy, w, grad in zip(copies, problem.weights, grads, strict=True):
        copy.grad = grad
        unrolled.state[copy]["momentum_buffer"] = optimizer.state[w]["momentum_buffer"].clone()
    unrolled.step()
    expected = at(copies, 1)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    (through,) = torch.autograd.grad(expected, problem.net.alpha)
    assert close(gradient, through, 1e-10)
    problem.loss(0)().backward()
    first_order = torch.autograd.grad(problem.loss(1)(), problem.net.alpha)[0]
    assert not close(gradient, first_order, 1e-2)


def traces(net: nn.Module) -> list[Tensor]:
    tensors = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters())]
    return [t.detach().clone() for t in tensors] + [torch.get_rng_state()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails_at", [None, 0, 1, 2, 3])
def test_nothing_is_left_behind(method: Any, fails_at: int | None) -> None:
    """Weights, running statistics, `.grad` and the generator are bit for bit as before, also after an error."""
    problem = Problem()
    for parameter in problem.net.parameters():
        parameter.grad = torch.randn_like(parameter)
    before, identity = traces(problem.net), [id(t) for t in (*problem.net.parameters(), *problem.net.buffers())]
    calls = iter(range(10))

    def failing(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            if next(calls) == fails_at:
                raise RuntimeError("out of patience")
            return loss()

        return call

    def run() -> None:
        losses = failing(problem.loss(1)), failing(problem.loss(0))
        options: dict[str, Any] = {"learning_rate": 0.3, "momentum": 0.9, "module": problem.net}
        hypergradient(*losses, problem.weights, [problem.net.alpha], method=method, **options)

    passes = 2 if method == "exact" else 4
    if fails_at is not None and fails_at < passes:
        with pytest.raises(RuntimeError, match="out of patience"):
            run()
    else:
        run()
        assert next(calls) == passes
    assert all(torch.equal(a, b) for a, b in zip(before, traces(problem.net), strict=True))
    assert identity == [id(t) for t in (*problem.net.parameters(), *problem.net.buffers())]


@pytest.mark.parametrize("method", METHODS)
def test_moved_weights_are_seen_inside_autocast(method: Any) -> None:
    """Autocast keeps the weights in half precision for as long as it lasts."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    alpha, x = nn.Parameter(torch.tensor(1.0)), torch.randn(8, 4)
    weights = list(net.parameters())

    def loss() -> Tensor:
        return (alpha * net(x)).float().square().mean()

    with torch.no_grad():
        before = float(loss())
    with torch.autocast("cpu", torch.bfloat16):
        loss()
        val, _ = hypergradient(loss, loss, weights, [alpha], learning_rate=0.5, method=method)
    with torch.no_grad():
        for w, g in zip(weights, torch.autograd.grad(loss_with_grad(loss), weights), strict=True):
            w -= 0.5 * g
        after = float(loss())
    assert abs(float(val) - after) < 0.1 * abs(before - after)


def loss_with_grad(loss: Callable[[], Tensor]) -> Tensor:
    with torch.enable_grad():
        return loss()


@pytest.mark.parametrize("method", METHODS)
def test_parameters_without_a_part(method: Any) -> None:
    """L_val that ignores the weights, weights and structure that nobody uses."""
    w, unused, a, idle = (nn.Parameter(torch.tensor([x], dtype=torch.float64)) for x in (1.0, 2.0, 3.0, 4.0))
    _, (gradient, zero) = hypergradient(
        lambda: (a**2).sum(), lambda: (a * w**2).sum(), [w, unused], [a, idle], learning_rate=0.1, method=method
    )
    assert float(gradient) == 6.0 and float(zero) == 0.0
    # A weight that only L_val uses does not move, so it carries nothing back; the other gives xi * 2 w * v, v = 1.
    _, (gradient, zero) = hypergradient(
        lambda: (w + 5 * unused).sum(),
        lambda: (a * w**2).sum(),
        [w, unused],
        [a, idle],
        learning_rate=0.1,
        weight_decay=0.5,
        method=method,
    )
    assert float(gradient) == pytest.approx(-0.2, abs=1e-9) and float(zero) == 0.0
    assert (w.item(), unused.item()) == (1.0, 2.0)


@pytest.mark.parametrize("method", METHODS)
def test_weights_may_have_decays_of_their_own(method: Any) -> None:
    """w' = 1 - 0.1 (2 a + d) with d = 0.5 and 0: L_val = 0.75^2 + 0.8^2, dL_val/da = -0.4 (0.75 + 0.8)."""
    a, *w = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(3))
    loss, (gradient,) = hypergradient(
        lambda: w[0] ** 2 + w[1] ** 2,
        lambda: a * (w[0] ** 2 + w[1] ** 2),
        w,
        [a],
        learning_rate=0.1,
        weight_decay=[0.5, 0.0],
        method=method,
    )
    assert float(loss) == pytest.approx(1.2025) and float(gradient) == pytest.approx(-0.62, abs=1e-9)


def test_settings_of_an_optimizer() -> None:
    w = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    assert step_settings(sgd, [w])["momentum_buffers"] == [None]
    w.grad = torch.full((2,), 3.0)
    sgd.step()
    settings = step_settings(sgd, [w])
    assert settings["momentum_buffers"][0] is sgd.state[w]["momentum_buffer"]
    assert (settings["learning_rate"], settings["momentum"], settings["nesterov"]) == (0.1, 0.9, True)
    adam = torch.optim.Adam([w], lr=0.01, weight_decay=0.1)
    adam.step()
    assert step_settings(adam, [w]) == {
        "learning_rate": 0.01,
        "momentum": 0.0,
        "momentum_buffers": [None],
        "weight_decay": 0.1,
        "nesterov": False,
    }
    v = nn.Parameter(torch.ones(1))
    spared = torch.optim.SGD([{"params": [v], "weight_decay": 0.0}, {"params": [w]}], lr=0.1, weight_decay=0.5)
    assert step_settings(spared, [w, v])["weight_decay"] == [0.5, 0.0]
    two = torch.optim.SGD([{"params": [w]}, {"params": [v], "lr": 0.2}], lr=0.1)
    for bad in (two, torch.optim.SGD([w], lr=0.1, momentum=0.9, dampening=0.5)):
        with pytest.raises(ConfigError, match="order=1"):
            step_settings(bad, [w])


def test_mistakes_are_refused() -> None:
    toy = Quadratic(0)
    with pytest.raises(ConfigError, match="'exact' or 'finite_difference'"):
        hypergradient(toy.val, toy.train, [toy.w], [toy.a], learning_rate=0.1, method="both")  # type: ignore[arg-type]
    for method in METHODS:
        with pytest.raises(NumericsError, match="order=1"):
            hypergradient(
                lambda: toy.val() * float("inf"), toy.train, [toy.w], [toy.a], learning_rate=0.1, method=method
            )
