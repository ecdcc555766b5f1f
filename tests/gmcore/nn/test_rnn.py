"""Recurrent layers and cells: composition, directions, packing, one-hot numbers, PyTorch to the second derivative."""

import numpy as np
import pytest

import gmcore
import gmkernels
from gmcore import Generator, grad, manual_seed, nn, ops, tensor
from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tests.support.cupy_stand_in import has_gpu

LAYERS = {
    "RNN": lambda *a, **k: nn.RNN(*a, **k, dtype="float64"),
    "relu": lambda *a, **k: nn.RNN(*a, **k, nonlinearity="relu", dtype="float64"),
    "LSTM": lambda *a, **k: nn.LSTM(*a, **k, dtype="float64"),
    "GRU": lambda *a, **k: nn.GRU(*a, **k, dtype="float64"),
    "GRU of Cho et al.": lambda *a, **k: nn.GRU(*a, **k, reset_after=False, dtype="float64"),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
X = np.random.default_rng(0).standard_normal((5, 2, 3))


def states(h):
    return list(h) if isinstance(h, tuple) else [h]


def close(a, b, tolerance=1e-14):
    np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=tolerance, atol=tolerance)


def copy_layer(source, target, layer, suffix=""):
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(target, f"{kind}_l0").copy_(getattr(source, f"{kind}_l{layer}{suffix}"))


# -- what a layer is made of ------------------------------------------------------------------------------------------
@each_layer
def test_layers_are_a_composition(make):
    whole, below, above = make(3, 4, 2), make(3, 4), make(4, 4)
    copy_layer(whole, below, 0)
    copy_layer(whole, above, 1)
    middle, h_below = below(X)
    expected, h_above = above(middle)
    out, h = whole(X)
    close(out, expected)
    for found, lower, upper in zip(states(h), states(h_below), states(h_above)):
        close(found[:1], lower)
        close(found[1:], upper)


@each_layer
def test_two_directions_are_two_layers_and_one_reads_backwards(make):
    both, one = make(3, 4, bidirectional=True), make(3, 4)
    out, h = both(X)
    copy_layer(both, one, 0)
    close(out[..., :4], one(X)[0])
    copy_layer(both, one, 0, "_reverse")
    backwards, h_back = one(X[::-1].copy())
    close(out[..., 4:], ops.flip(backwards, 0))
    for found, expected in zip(states(h), states(h_back)):
        close(found[1:], expected)


@each_layer
def test_a_layer_is_its_cell_repeated(make):
    layer = make(3, 4)
    names = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}
    options = {k: getattr(layer, k) for k in ("nonlinearity", "reset_after") if hasattr(layer, k)}
    cell = names[type(layer).__name__](3, 4, dtype="float64", **options)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    out, last = layer(X)
    h = None
    for t, x in enumerate(X):
        h = cell(x, h)
        close(states(h)[0], out[t])
    close(ops.stack(states(h)), ops.concatenate(states(last)))
    close(ops.stack(states(cell(X[0, 0]))), ops.stack([s[0] for s in states(cell(X[0]))]))


@each_layer
def test_batch_first_and_single_sequences(make):
    layer, first = make(3, 4, 2), make(3, 4, 2, batch_first=True)
    first.load_state_dict(layer.state_dict())
    hx = layer(X)[1]  # any states will do
    out, h = layer(X, hx)
    swapped, h_swapped = first(X.swapaxes(0, 1), hx)
    close(ops.swapaxes(swapped, 0, 1), out)
    close(ops.stack(states(h_swapped)), ops.stack(states(h)))
    one = tuple(s[:, 1] for s in states(hx))
    alone, h_alone = layer(X[:, 1], one if len(one) > 1 else one[0])
    close(alone, out[:, 1])
    close(ops.stack(states(h_alone)), ops.stack([s[:, 1] for s in states(h)]))


@each_layer
def test_sequences_of_different_lengths(make):
    """Packed, sorted or not: each as if alone, its gradient too; hx and h_n are in the order of the input."""
    layer, lengths = make(3, 4, 2, bidirectional=True), [2, 5]
    x = tensor(X, requires_grad=True)
    hx = layer(X[::-1].copy())[1]
    packed, h = layer(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
    out, found = pad_packed_sequence(packed)
    assert found.tolist() == lengths
    total = 0.0
    for b, length in enumerate(lengths):
        start = tuple(s[:, b] for s in states(hx))
        alone, h_alone = layer(x[:length, b], start if len(start) > 1 else start[0])
        close(out[:length, b], alone)
        close(ops.stack([s[:, b] for s in states(h)]), ops.stack(states(h_alone)))
        total = total + ops.sum(alone * alone)
    close(grad(ops.sum(out * out), x), grad(total, x), 1e-13)


@each_layer
def test_integers_stand_for_one_hot_rows(make):
    layer, numbers = make(3, 4), np.array([[0, 2], [1, 1], [2, 2]])
    for n in (numbers, numbers[:, 0]):
        y, expected = layer(n)[0], layer(np.eye(3)[n])[0]
        close(y, expected)
        close(grad(ops.sum(y * y), layer.weight_ih_l0), grad(ops.sum(expected * expected), layer.weight_ih_l0), 1e-13)
    with pytest.raises(ArgumentError, match="integers stand for one-hot rows, from 0 to 2, got 0 to 3"):
        layer(np.array([[0, 3]]))


def test_the_gru_of_cho_et_al_by_its_formula():
    """Equations 5 to 8 of the paper, from the parameters of the module, with z before the old state."""
    cell = nn.GRUCell(3, 4, dtype="float64", reset_after=False)
    x, h = X[0], np.random.default_rng(1).standard_normal((2, 4))
    w, u, b, c = (p.detach().numpy() for p in cell.parameters())
    (w_r, w_z, w_n), (u_r, u_z, u_n), (b_r, b_z, b_n) = (np.split(a, 3) for a in (w, u, b + c))
    r = 1 / (1 + np.exp(-(x @ w_r.T + h @ u_r.T + b_r)))
    z = 1 / (1 + np.exp(-(x @ w_z.T + h @ u_z.T + b_z)))
    candidate = np.tanh(x @ w_n.T + (r * h) @ u_n.T + b_n)
    np.testing.assert_allclose(cell(x, h).detach().numpy(), z * h + (1 - z) * candidate, atol=1e-15)


def test_parameters_are_drawn_as_in_torch():
    generator = manual_seed(3)
    layer = nn.GRU(10, 100, 2)
    assert generator.state == (3, 8)
    for p in layer.parameters():
        values = p.detach().numpy()
        assert abs(values).max() <= 0.1 and abs(values).max() > 0.098
        assert abs(values.mean()) < 5 * 0.1 / np.sqrt(3 * values.size)
    other = nn.GRU(10, 100, 2)
    other.reset_parameters(Generator(3))
    assert all(np.array_equal(p.detach().numpy(), q.detach().numpy()) for p, q in zip(layer.parameters(),
                                                                                   other.parameters()))  # fmt: skip


def test_dropout_acts_between_layers_in_training():
    layer = nn.RNN(3, 4, 2, dropout=1.0, dtype="float64")
    above = nn.RNN(4, 4, dtype="float64")
    copy_layer(layer, above, 1)
    close(layer(X)[0], above(np.zeros((5, 2, 4)))[0])
    assert abs(layer.eval()(X)[0] - above(np.zeros((5, 2, 4)))[0]).max().item() > 0.01


def test_without_bias():
    layer = nn.LSTM(3, 4, bias=False, dtype="float64")
    assert list(layer.state_dict()) == ["weight_ih_l0", "weight_hh_l0"]
    biased = nn.LSTM(3, 4, dtype="float64")
    biased.load_state_dict({**layer.state_dict(), "bias_ih_l0": np.ones(16), "bias_hh_l0": -np.ones(16)})
    close(layer(X)[0], biased(X)[0])


# -- PyTorch ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["RNN", "relu", "LSTM", "GRU"])
def test_values_and_two_derivatives_equal_pytorch(name):
    """Of two layers in both directions on packed sequences, to 1e-8 in float64."""
    torch = pytest.importorskip("torch")
    manual_seed(5)
    mine = LAYERS[name](3, 4, 2, bidirectional=True)
    kind, options = ("RNN", {"nonlinearity": "relu"}) if name == "relu" else (name, {})
    other = getattr(torch.nn, kind)(3, 4, 2, bidirectional=True, dtype=torch.float64, **options)
    other.load_state_dict({key: torch.tensor(value.numpy()) for key, value in mine.state_dict().items()})
    x, torch_x = tensor(X, requires_grad=True), torch.tensor(X, requires_grad=True)
    packed, h = mine(pack_padded_sequence(x, [3, 5], enforce_sorted=False))
    torch_pack = torch.nn.utils.rnn.pack_padded_sequence
    torch_packed, torch_h = other(torch_pack(torch_x, [3, 5], enforce_sorted=False))
    weights = np.random.default_rng(2).standard_normal(packed.data.shape)
    value = ops.sum(packed.data * weights) + sum(ops.sum(s * s) for s in states(h))
    torch_value = (torch_packed.data * torch.from_numpy(weights)).sum() + sum((s * s).sum() for s in states(torch_h))
    inputs = [x, *mine.parameters()]
    torch_inputs = [torch_x, *other.parameters()]
    first = grad(value, inputs, create_graph=True)
    torch_first = torch.autograd.grad(torch_value, torch_inputs, create_graph=True)
    second = grad(sum(ops.sum(g * g * g) for g in first), inputs)
    torch_second = torch.autograd.grad(sum((g * g * g).sum() for g in torch_first), torch_inputs)
    assert value.item() == pytest.approx(torch_value.item(), rel=1e-12)
    for found, expected in zip((*first, *second), (*torch_first, *torch_second), strict=True):
        expected = expected.detach().numpy()
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-8, atol=1e-8 * max(1, abs(expected).max()))


def test_float16_keeps_its_dtype_and_computes_in_float32():
    layer, exact = nn.GRU(3, 4), nn.GRU(3, 4)
    exact.load_state_dict(layer.state_dict())
    layer.to("float16")
    x = X.astype(np.float16)
    out, _ = layer(x)
    out.sum().backward()
    assert out.dtype == layer.weight_hh_l0.grad.dtype == np.float16
    np.testing.assert_allclose(out.detach().numpy(), exact(x.astype("f"))[0].detach().numpy(), atol=2e-3)


# -- errors -----------------------------------------------------------------------------------------------------------
def test_arguments_are_taken_or_refused_by_name():
    for make, match in (
        (lambda: nn.RNN(3, 0), "RNN: hidden_size must be a positive integer, got 0"),
        (lambda: nn.LSTM(3, 4, num_layers=0), "LSTM: num_layers must be a positive integer"),
        (lambda: nn.LSTM(3, 4, proj_size=2), "LSTM: proj_size=2 is not supported"),
        (lambda: nn.RNN(3, 4, nonlinearity="gelu"), "RNN: nonlinearity 'gelu'; expected one of tanh, relu"),
        (lambda: nn.RNNCell(3, 4, nonlinearity="gelu"), "RNNCell: nonlinearity 'gelu'"),
        (lambda: nn.GRU(3, 4, 2, dropout=1.5), r"GRU: dropout must be in \[0, 1\], got 1.5"),
        (lambda: nn.GRU(3, 4, dropout=0.5), "dropout=0.5 acts between layers, and num_layers is 1"),
        (lambda: nn.GRU(3, 4, device="gpu"), "device 'gpu'"),
    ):
        with pytest.raises(ArgumentError, match=match):
            make()
    assert repr(nn.GRU(3, 4, 2, reset_after=False, dropout=0.5)) == (
        "GRU(3, 4, num_layers=2, dropout=0.5, reset_after=False)"
    )
    assert repr(nn.RNNCell(3, 4, False, "relu")) == "RNNCell(3, 4, nonlinearity='relu', bias=False)"


def test_inputs_that_do_not_fit_are_named():
    layer, cell = LAYERS["LSTM"](3, 4), nn.GRUCell(3, 4)
    for call, match in (
        (lambda: layer(X[:0]), r"LSTM: expected sequences of at least one step, got .*\(0, 2, 3\)"),
        (lambda: layer(X[..., :2]), r"LSTM: expected an input \(..., 3\), got \(5, 2, 2\)"),
        (lambda: layer(X[None]), r"LSTM: expected an input \(T, B, ...\) or, .* got \(1, 5, 2, 3\)"),
        (lambda: layer(X, (X[:1], X[:1])), r"expected hx a pair \(h_0, c_0\) of \(1, 2, 4\), got \(1, 2, 3\), \(1, "),
        (lambda: cell(X), r"GRUCell: expected an input \(B, 3\) or \(3,\), got \(5, 2, 3\)"),
        (lambda: cell(X[0], X[0]), r"GRUCell: expected hx \(2, 4\), got \(2, 3\)"),
    ):
        with pytest.raises(ShapeError, match=match + r".*test_rnn\.py:\d"):
            call()
    with pytest.raises(DtypeError, match="got bool"):
        layer(X > 0)
    with pytest.raises(gmcore.errors.GmcoreError, match="float32.*float64"):
        layer(X.astype("f"))


# -- on a GPU --------------------------------------------------------------------------------------------------------
PACKINGS = ([4, 2, 2], [3, 1, 4], [2, 4, 2], [4, 3, 1], [1, 4, 3], [4, 2, 2])
"""Lengths of three sequences of 8 rows in all, and 4 steps."""


@pytest.mark.slow
@pytest.mark.parametrize("make, from_cpu", [(nn.RNN, False), (nn.GRU, True), (nn.LSTM, False)])
def test_a_graph_serves_sequences_of_any_lengths(make, from_cpu):
    """Rows and batch sizes come to a step as arguments, the latter from the CPU or on the device; nothing is waited for
    on a device, and what the CPU gives is checked before the graph is launched."""
    gmcore.manual_seed(1)
    layer = make(2, 3, bidirectional=True).to("cuda")
    hx = gmcore.tensor(np.full((2, 3, 3), 0.1, np.float32), device="cuda", requires_grad=True)
    states = (hx, 2.0 * hx.detach()) if make is nn.LSTM else hx

    def step(packed):
        layer.zero_grad()
        hx.grad = None
        h, last = layer(packed, states)
        loss = ops.sum(ops.square(h.data)) + ops.sum(last[1] if make is nn.LSTM else last)
        loss.backward()
        return loss.detach(), h.data.detach(), *[p.grad for p in (hx, *layer.parameters())]

    def packed(lengths):
        x = np.random.default_rng(sum(lengths[:2])).standard_normal((4, 3, 2)).astype(np.float32)
        found = pack_padded_sequence(gmcore.tensor(x, device="cuda"), lengths, enforce_sorted=False)
        return found._replace(batch_sizes=found.batch_sizes.to("cpu" if from_cpu else "cuda"))

    graph = gmcore.capture(step)
    for lengths in PACKINGS:
        found, expected = graph(packed(lengths)), step(packed(lengths))
        assert [a.cpu().numpy().tobytes() for a in found] == [a.cpu().numpy().tobytes() for a in expected]
    assert len(graph.programs) == 1 and len(PACKINGS) > 4
    if from_cpu:
        wrong = packed(PACKINGS[0])._replace(batch_sizes=gmcore.tensor(np.array([3, 3, 3, 3])))
        with pytest.raises(ShapeError, match="do not describe 8 rows of 3 sequences"):
            graph(wrong)


@pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")
def test_derivatives_of_any_order_on_a_gpu():
    """By the formulas in tensors, which look at the batch sizes, also at those in the memory of a GPU."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in ((5, 8), (2, 2), (2, 2), (8, 2))]

    def second(device):
        x, *rest = [gmcore.tensor(a, device=device, requires_grad=True) for a in arrays]
        with gmkernels.use("reference"):
            h = ops.lstm(x, *rest, gmcore.tensor(np.array([2, 2, 1]), device=device))[0]
            first = gmcore.grad(ops.sum(h * h), x, create_graph=True)
            return [g.cpu().numpy() for g in gmcore.grad(ops.sum(first * first), [x, *rest])]

    for found, expected in zip(second("cuda"), second("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
