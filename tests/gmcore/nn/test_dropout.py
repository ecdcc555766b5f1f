import numpy as np
import pytest

from gmcore import default_generator, manual_seed, nn, ops, tensor
from gmcore.errors import ArgumentError

X = np.ones((200, 50), np.float32)


def test_drops_a_share_and_keeps_the_mean_by_the_common_stream():
    layer = nn.Dropout(0.3)
    manual_seed(5)
    y = layer(X)
    assert default_generator().state == (5, 1)
    manual_seed(5)
    np.testing.assert_array_equal(y.numpy(), ops.dropout(X, 0.3).numpy())
    kept = y.numpy() != 0
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / X.size)
    np.testing.assert_allclose(y.numpy()[kept], 1 / 0.7, rtol=1e-6)


def test_evaluation_is_the_identity_and_takes_no_draw():
    generator = manual_seed(5)
    x = tensor(X)
    assert nn.Dropout(0.3).eval()(x) is x and generator.state == (5, 0)


def test_the_gradient_has_the_mask_of_the_value():
    x = tensor(X, requires_grad=True)
    y = nn.Dropout(0.5)(x)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.detach().numpy())


def test_arguments():
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match=r"p must be in \[0, 1\]"):
            nn.Dropout(p)
    with pytest.raises(ArgumentError, match="inplace=True"):
        nn.Dropout(0.5, True)
    assert repr(nn.Dropout(0.2)) == "Dropout(p=0.2)"
