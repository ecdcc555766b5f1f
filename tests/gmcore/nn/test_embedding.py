import numpy as np
import pytest

from gmcore import Generator, grad, manual_seed, nn, ops
from gmcore.errors import ArgumentError, DtypeError, ShapeError

INDEX = np.array([[0, 2, 2], [1, 2, 0]])


def test_looks_up_rows_and_adds_up_their_gradients():
    table = nn.Embedding(4, 3, dtype="float64")
    rows = table(INDEX)
    np.testing.assert_array_equal(rows.detach().numpy(), table.weight.detach().numpy()[INDEX])
    g = np.random.default_rng(0).standard_normal(rows.shape)
    expected = np.stack([(g * (INDEX == i)[..., None]).sum((0, 1)) for i in range(4)])
    np.testing.assert_allclose(grad(rows, table.weight, g).numpy(), expected, rtol=1e-14)
    first = grad(ops.sum(ops.square(table(INDEX))), table.weight, create_graph=True)
    counts = np.array([2.0, 1.0, 3.0, 0.0])[:, None]
    np.testing.assert_allclose(grad(first.sum(), table.weight).numpy(), 2 * counts * np.ones((4, 3)), rtol=1e-14)


@pytest.mark.parametrize("padding", [2, -2])
def test_the_padding_row_starts_at_zero_and_stays(padding):
    table = nn.Embedding(4, 3, padding_idx=padding)
    assert table.padding_idx == 2 and not table.weight.detach().numpy()[2].any()
    table(INDEX).sum().backward()
    assert table.weight.grad.numpy().tolist() == [[2.0] * 3, [1.0] * 3, [0.0] * 3, [0.0] * 3]


def test_standard_normal_by_one_draw():
    generator = manual_seed(3)
    weight = nn.Embedding(300, 40).weight.detach().numpy()
    assert generator.state == (3, 1)
    assert abs(weight.mean()) < 5 / np.sqrt(weight.size) and abs(weight.var() - 1) < 5 * np.sqrt(2 / weight.size)
    other = nn.Embedding(300, 40)
    other.reset_parameters(Generator(3))
    np.testing.assert_array_equal(other.weight.detach().numpy(), weight)


def test_from_pretrained_copies_and_freezes():
    rows = np.arange(6.0).reshape(3, 2)
    table = nn.Embedding.from_pretrained(rows, padding_idx=0)
    assert table.weight.dtype == np.float64 and not table.weight.requires_grad
    assert table([2, 0]).tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert nn.Embedding.from_pretrained(rows, freeze=False).weight.requires_grad
    with pytest.raises(ShapeError, match=r"expected embeddings \(n, d\), got \(3,\)"):
        nn.Embedding.from_pretrained(rows[:, 0])


def test_errors():
    table = nn.Embedding(4, 3)
    with pytest.raises(DtypeError, match="Embedding: expected integers, got float32"):
        table([1.0])
    for bad in (-1, 4):
        with pytest.raises(ArgumentError, match=rf"integers from 0 to 3, got {bad} to {bad} .*test_embedding\.py"):
            table([bad])
    assert table(np.zeros((0, 2), int)).shape == (0, 2, 3)
    for arguments, match in (
        ({"padding_idx": 4}, "padding_idx 4 is none of 4 rows"),
        ({"max_norm": 1.0}, "max_norm=1.0 is not supported"),
        ({"scale_grad_by_freq": True}, "scale_grad_by_freq=True is not supported"),
        ({"sparse": True}, "sparse=True is not supported"),
    ):
        with pytest.raises(ArgumentError, match=match):
            nn.Embedding(4, 3, **arguments)
    with pytest.raises(ArgumentError, match="embedding_dim must be a positive integer"):
        nn.Embedding(4, 0)
