"""What the tests of functions composed of ops share: the checks that `test_ops.py` makes of every single op."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor
from gmcore.op import OPS

Function = Callable[..., Any]


def _outputs(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _close(actual: Any, expected: Any, tolerance: float) -> None:
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))))
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance * scale)


def _weights(shapes: list[tuple[int, ...]], order: int) -> list[np.ndarray]:
    rng = np.random.default_rng(order)
    return [np.asarray(rng.uniform(-1.0, 1.0, shape)) for shape in shapes]


def _ours(function: Function, arrays: list[np.ndarray], orders: int) -> list[list[np.ndarray]]:
    """Values, gradients of their weighted sum, gradients of those, ..."""
    xs = [gmcore.tensor(a, requires_grad=True) for a in arrays]
    levels = [_outputs(function(*xs))]
    for order in range(1, orders + 1):
        ys = levels[-1]
        weights = [w.astype(y.dtype) for w, y in zip(_weights([y.shape for y in ys], order), ys, strict=True)]
        pairs = [(y, w) for y, w in zip(ys, weights, strict=True) if y.requires_grad]
        levels.append(
            list(gmcore.grad([y for y, _ in pairs], xs, [w for _, w in pairs], create_graph=True, fill=True))
            if pairs else [Tensor(np.zeros(x.shape, x.dtype)) for x in xs]
        )  # fmt: skip
    return [[y.detach().numpy() for y in level] for level in levels]


@pytest.fixture
def is_its_formula() -> Function:
    """check(function, formula, arrays): values in float64; float32 throughout in float32; two derivatives."""

    def check(function: Function, formula: Function, arrays: list[np.ndarray], order: int = 2) -> None:
        values, gradients = _ours(function, arrays, 1)
        for y, expected in zip(values, _outputs(formula(*arrays)), strict=True):
            assert y.dtype == np.float64
            _close(y, expected, 1e-13)  # a few dozen roundings
        single = [a.astype(np.float32) for a in arrays]
        rounded = _ours(function, [a.astype(np.float64) for a in single], 1)
        for level, references in zip(_ours(function, single, 1), rounded, strict=True):
            for y, reference in zip(level, references, strict=True):
                assert y.dtype == np.float32
                _close(y, reference, 2.5e-5)  # some 20 roundings of 6e-8, condition numbers up to about 20
        assert [g.shape for g in gradients] == [a.shape for a in arrays]
        if arrays:
            assert gmcore.gradcheck(function, arrays, order=order, directions=1)

    return check


@pytest.fixture
def agrees_with_torch() -> Function:
    """check(function, counterpart, arrays): values and derivatives up to `order` in float64 to 1e-9."""
    torch = pytest.importorskip("torch")

    def check(function: Function, counterpart: Function, arrays: list[np.ndarray], order: int = 2) -> None:
        xs = [torch.tensor(a, requires_grad=True) for a in arrays]
        levels = [_outputs(counterpart(*xs))]
        for level in range(1, order + 1):
            ys = levels[-1]
            weights = [torch.from_numpy(w) for w in _weights([tuple(y.shape) for y in ys], level)]
            pairs = [(y, w) for y, w in zip(ys, weights, strict=True) if y.requires_grad]
            options: dict[str, Any] = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
            levels.append(
                list(torch.autograd.grad([y for y, _ in pairs], xs, [w for _, w in pairs], **options))
                if pairs else [torch.zeros_like(x) for x in xs]
            )  # fmt: skip
        for found, expected in zip(_ours(function, arrays, order), levels, strict=True):
            for y, reference in zip(found, expected, strict=True):
                _close(y, reference.detach().numpy(force=True), 1e-9)

    return check


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[tuple[int, ...]]]]:
    """watch(name): a list to which every call of that op from here on adds the shapes of its inputs."""

    def watch(name: str) -> list[list[tuple[int, ...]]]:
        op, calls = OPS[name], []
        forward = op.forward

        def watched(*arrays: Any, **attrs: Any) -> Any:
            calls.append([a.shape for a in arrays])
            return forward(*arrays, **attrs)

        monkeypatch.setattr(op, "forward", watched)
        return calls

    return watch
