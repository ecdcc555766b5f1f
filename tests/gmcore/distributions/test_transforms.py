import numpy as np
import pytest

from gmcore import Generator, Tensor, gradcheck, tensor
from gmcore.distributions import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    SigmoidTransform,
    SoftplusTransform,
    StickBreakingTransform,
    TanhTransform,
    Transform,
)
from gmcore.errors import ArgumentError

RNG = np.random.default_rng(0)
X = RNG.normal(0.0, 1.0, (2, 3))
TRANSFORMS = {
    "affine": AffineTransform(0.5, -2.0),
    "affine vector": AffineTransform(RNG.normal(size=3), RNG.uniform(0.5, 2.0, 3), event_dim=1),
    "exp": ExpTransform(),
    "softplus": SoftplusTransform(),
    "sigmoid": SigmoidTransform(),
    "tanh": TanhTransform(),
    "stick breaking": StickBreakingTransform(),
    "inverse": SigmoidTransform().inv.inv,
    "composed": ComposeTransform(
        [AffineTransform(0.1, 0.7), TanhTransform(), AffineTransform(1.5, 1.2), ExpTransform()]
    ),
    "composed vector": ComposeTransform([AffineTransform(0.1, 0.7), StickBreakingTransform()]),
    "composed there and back": ComposeTransform(
        [StickBreakingTransform(), StickBreakingTransform().inv, ExpTransform()]
    ),
    "nothing": ComposeTransform([]),
}
each = pytest.mark.parametrize("f", TRANSFORMS.values(), ids=TRANSFORMS)


@each
def test_inverse_and_shapes(f: Transform) -> None:
    x = tensor(X)
    y = f(x)
    assert f.forward_shape(X.shape) == y.shape and f.inverse_shape(y.shape) == X.shape
    assert f.inv.forward_shape(y.shape) == X.shape and f.inv.inverse_shape(X.shape) == y.shape
    np.testing.assert_allclose(f.inv(y).numpy(), X, rtol=1e-10, atol=1e-12)
    assert f.codomain.contains(y.numpy()).all() and f.domain.contains(X).all()
    if f is not TRANSFORMS["affine vector"]:  # its parameters are float64
        assert f(tensor(X.astype(np.float32))).dtype == np.float32
    np.testing.assert_allclose(
        f.inv.log_abs_det_jacobian(y, x).numpy(), -f.log_abs_det_jacobian(x, y).numpy(), rtol=1e-12
    )


@each
def test_log_abs_det_jacobian_is_that_of_the_jacobian(f: Transform) -> None:
    """By finite differences of the function, in as many coordinates of y as of x."""
    y0 = f(tensor(X[0])).numpy()
    h, columns = 1e-5, []
    for v in np.eye(3):
        columns.append((f(tensor(X[0] + h * v)).numpy() - f(tensor(X[0] - h * v)).numpy()) / (2 * h))
    jacobian = np.stack(columns, -1)[:3]
    found = f.log_abs_det_jacobian(tensor(X[0]), tensor(y0)).numpy()
    assert found.shape == (3,)[f.domain_event_dim :]
    # h^2 f''' / 6 and 1e-16 / h
    np.testing.assert_allclose(found.sum(), np.linalg.slogdet(jacobian)[1], rtol=1e-7, atol=1e-8)


@each
def test_derivatives(f: Transform) -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        y = f(x)
        return y, f.log_abs_det_jacobian(x, y)

    assert gradcheck(both, [X], order=2, directions=1)
    assert gradcheck(lambda x: f.inv(f(x) * 1.0), [X], order=1, directions=1)


@pytest.mark.parametrize("name", ["affine", "affine vector", "exp", "softplus", "sigmoid", "tanh", "stick breaking"])
def test_against_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    f = TRANSFORMS[name]
    kind = getattr(torch.distributions, type(f).__name__)
    theirs = (
        kind(*(torch.tensor(x, dtype=torch.float64) for x in (f.loc, f.scale)), f.domain_event_dim)
        if "affine" in name
        else kind()
    )
    x = torch.tensor(X)
    y = theirs(x)
    np.testing.assert_allclose(f(tensor(X)).numpy(), y, rtol=1e-12)
    found = f.log_abs_det_jacobian(tensor(X), tensor(y.numpy())).numpy()
    np.testing.assert_allclose(found, theirs.log_abs_det_jacobian(x, y), rtol=1e-11)


def test_signs_multiply() -> None:
    assert AffineTransform(0.0, -2.0).sign == -1 and TanhTransform().sign == 1
    assert ComposeTransform([AffineTransform(0.0, -2.0), ExpTransform()]).sign == -1
    np.testing.assert_array_equal(
        ComposeTransform([AffineTransform(0.0, -2.0), AffineTransform(0.0, np.array([1.0, -1.0]))]).sign, [-1, 1]
    )
    assert TRANSFORMS["composed vector"].sign is None


def test_stick_breaking_of_zero_is_uniform() -> None:
    np.testing.assert_allclose(StickBreakingTransform()(np.zeros(4)).numpy(), 0.2, rtol=1e-14)
    x = tensor(Generator(1).draw().numpy()[:0].astype(np.float64))
    assert StickBreakingTransform()(x).tolist() == [1.0]


def test_sigmoid_stays_inside() -> None:
    y = SigmoidTransform()(np.array([-1e3, 1e3], np.float32)).numpy()
    assert (y > 0).all() and (y < 1).all() and np.isfinite(SigmoidTransform().inv(y).numpy()).all()


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="ComposeTransform: expected transforms, got 3"):
        ComposeTransform([ExpTransform(), 3])
    assert repr(ComposeTransform([ExpTransform().inv])) == "ComposeTransform([ExpTransform().inv])"
