"""The last layer of a decoder with its likelihood: which way it takes, the same values either way, its memory."""

import itertools

import numpy as np
import pytest

import gmcore
from gmcore import gradcheck, no_grad, ops
from gmcore.capture import Captured
from gmcore.models.latent.vae import VAE
from gmcore.random import Generator
from gmcore.tensor import Tensor
from gmkernels.likelihood import spec


def layer(k: int = 3, batch: int = 4, n: int = 5, size: int = 6, dtype: str = "float64") -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((k, batch, size)), rng.standard_normal((n, size)), rng.standard_normal(n)
    return [a.astype(dtype) for a in (*arrays, rng.random((batch, n)))]


def on_tape(arrays: list[np.ndarray], needs: tuple[bool, ...]) -> list[Tensor]:
    return [Tensor(a, requires_grad=need) for a, need in zip(arrays, needs, strict=True)]


TRAINING = (True, True, True, False)


def taken(arrays: list[np.ndarray], recompute: bool | None = None) -> str:
    found = ops.linear_bernoulli_log_prob(*on_tape(arrays, TRAINING), recompute=recompute)
    assert found._node is not None
    return found._node.op.name


def test_residuals_of_small_calls_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = layer()
    assert taken(arrays) == taken(arrays, False) == "linear_bernoulli_residual"
    assert taken(arrays, True) == "linear_bernoulli_log_prob"
    monkeypatch.setattr(spec, "RESIDUAL_BYTES", 3 * 4 * 5 * 8 - 1)
    assert taken(arrays) == "linear_bernoulli_log_prob"


@pytest.mark.parametrize("needs", [n for n in itertools.product((False, True), repeat=4) if any(n)])
def test_both_ways_have_one_gradient(needs: tuple[bool, ...]) -> None:
    """Also where the weight is fixed, or x is trained: the sums of at most 24 terms below 10."""
    found = []
    for recompute in (False, True):
        tensors = on_tape(layer(), needs)
        value = ops.linear_bernoulli_log_prob(*tensors, recompute=recompute)
        wanted = [t for t in tensors if t.requires_grad]
        gradients = gmcore.grad(ops.sum(value * value), wanted, create_graph=True)
        again = gmcore.grad(sum(ops.sum(g * g) for g in gradients), wanted)
        found.append([value, *gradients, *again])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("recompute", [False, True])
def test_second_derivatives(recompute: bool) -> None:
    *arrays, x = layer(2, 2, 3, 2)

    def log_prob(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.linear_bernoulli_log_prob(h, weight, bias, x, recompute=recompute)

    assert gradcheck(log_prob, arrays, order=2)


@pytest.mark.parametrize("recompute", [False, True])
def test_captured_steps_have_the_bits_of_eager_ones(recompute: bool) -> None:
    h, weight, bias, x = layer(5, 7, 40, 9, "float32")
    weight_, bias_ = on_tape([weight, bias], (True, True))

    def step(h: Tensor) -> list[Tensor]:
        value = ops.linear_bernoulli_log_prob(h, weight_, bias_, x, recompute=recompute)
        with no_grad():
            evaluated = ops.linear_bernoulli_log_prob(h, weight_, bias_, x)
        return [value.detach(), evaluated, *gmcore.grad(ops.sum(value), [weight_, bias_])]

    captured = gmcore.capture(step)
    assert isinstance(captured, Captured)
    for i in range(5):
        for a, b in zip(captured(Tensor(h + i)), step(Tensor(h + i)), strict=True):
            assert a.numpy().tobytes() == b.numpy().tobytes()


def peak(h: np.ndarray, weight: np.ndarray, bias: np.ndarray, x: np.ndarray, needs: tuple[bool, ...]) -> int:
    tensors = on_tape([h, weight, bias, x], needs)
    for _ in range(2):  # the first compiles
        with gmcore.peak_memory() as memory:
            value = ops.linear_bernoulli_log_prob(*tensors)
            if any(needs):
                gmcore.grad(ops.sum(value), [t for t in tensors if t.requires_grad])
    return memory.peak


def test_memory_does_not_grow_with_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluated: the results, and the weight once more. Trained: what is bounded, and the gradient of h with g h."""
    h, weight, bias, x = layer(500, 4, 784, 2, "float32")
    logits, beside = 500 * 4 * 784 * 4, weight.nbytes + 10_000
    monkeypatch.setattr(spec, "RESIDUAL_BYTES", logits // 50)
    assert peak(h, weight, bias, x, (False,) * 4) < 500 * 4 * 4 + 1.1 * beside < 0.01 * logits
    assert (
        peak(h, weight, bias, x, TRAINING)
        < 1.1 * logits // 50 + 3 * h.nbytes + 4 * 500 * 4 * 8 + 6 * beside
        < 0.1 * logits
    )


def test_evaluation_of_5000_samples_never_has_their_logits() -> None:
    """All importance weights at once; a model's own evaluation goes through parts of the samples besides."""
    k, batch, size = 5000, 3, 784
    model = VAE(size, latent_size=2, hidden_sizes=(4,), generator=Generator(1))
    rng = np.random.default_rng(0)
    x = Tensor((rng.random((batch, size)) < 0.5).astype(np.float32))
    with no_grad():
        mu, logvar = model.encode(x)
        key = Generator(2).draw()
        for samples in (8, k):
            with gmcore.peak_memory() as memory:
                log_w = model.log_weights(x, mu, logvar, samples=samples, key=key)
    assert log_w.shape == (k, batch) and np.isfinite(log_w.numpy()).all()
    # Some arrays of (k, batch, 2) and (k, batch, 4) numbers: less than fifty numbers a sample, where logits are 784.
    assert memory.peak < k * batch * 50 * 4 + (1 << 18)
