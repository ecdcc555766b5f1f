"""Devices: operations, modules, optimisers and training give on a GPU what they give on the CPU.

Where there is no GPU, CuPy is its stand-in (`tests/support`), which refuses what CuPy refuses: a NumPy array that
strays among arrays of a GPU, a function that CuPy lacks, numbers that cross to the host unasked.
"""

import gc
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmcore
import gmkernels
from gmcore import Generator, Tensor, cli, data, functional, io, models, nn, ops
from gmcore.device import put_all
from gmcore.errors import ArgumentError, DeviceError, DeviceMemoryError, GmcoreError, GraphError, MissingPackageError
from gmcore.evaluation import evaluate
from gmcore.models import language
from gmcore.models.boltzmann import boltzmann_machine, rbm
from gmcore.models.latent.iwae import IWAE
from gmcore.models.latent.vae import VAE
from gmcore.models.recurrent import char_rnn
from gmcore.op import OPS
from gmcore.optim import EMA, LBFGS, SGD, Adadelta, Adagrad, Adam, RMSprop, clip_grad_norm_, clip_grad_value_
from gmkernels import devices, registry
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

cupy = pytest.importorskip("cupy")
emulated = pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")
NOT_ON_A_DEVICE = {"checkpoint": "its first argument is a function"}
MADE_THERE = {"to_device", "normal", "uniform"}
"""Operations that say themselves where their result lies."""


@pytest.fixture
def formulas() -> Iterator[None]:
    """The formulas of NumPy in the place of kernels, on both devices: nothing is compiled or interpreted."""
    with gmkernels.use("reference"):
        yield


by_formulas = pytest.mark.usefixtures("formulas")


def on(device: str, value: Any) -> Any:
    """An argument of an example with its arrays as leaves on a device."""
    if isinstance(value, (np.ndarray, np.floating, np.bool_)):
        array = np.asarray(value)
        return gmcore.tensor(array, device=device, requires_grad=array.dtype.kind == "f")
    if isinstance(value, list):
        return [on(device, part) for part in value]
    return value


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [t for part in value for t in tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def results(op: Any, device: str, args: Any, kwargs: Any) -> list[Any]:
    """The outputs of an operation and the gradients of its inputs, as arrays of NumPy."""
    gmcore.manual_seed(1)
    given = [on(device, x) for x in args]
    outputs = tensors(op.public(*given, **kwargs))
    here = "cpu" if device == "cpu" or op.name in MADE_THERE else "cuda:0"
    assert {y.device for y in outputs} == {here}
    roots, leaves = [y for y in outputs if y.requires_grad], [x for x in tensors(given) if x.requires_grad]
    if not roots or not leaves:
        return [y.cpu().numpy() for y in outputs]
    weights = np.random.default_rng(2)
    starts = [
        gmcore.tensor(np.asarray(weights.standard_normal(y.shape)).astype(y.dtype), device=y.device) for y in roots
    ]
    try:
        grads = gmcore.grad(roots, leaves, starts, allow_unused=True)
    except GraphError:  # no derivative: so it must be on both devices
        grads = (None,)
    assert all(g is None or g.device == x.device for g, x in zip(grads, leaves, strict=False))
    return [y.detach().cpu().numpy() for y in outputs] + [g if g is None else g.cpu().numpy() for g in grads]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    # float64 on both sides: functions of CuPy differ from NumPy's by a few units in the last place, which gradients
    # of matrices far from singular enlarge a hundredfold.
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def examples(op: Any) -> list[Any]:
    return list(op.examples(np.random.default_rng(0)))


@by_formulas
@pytest.mark.parametrize("name", sorted(OPS.keys() - NOT_ON_A_DEVICE.keys()))
def test_operations(name: str) -> None:
    """The last example of each, with its first derivative; all of them in the slow run."""
    args, kwargs = examples(OPS[name])[-1]
    assert_equal(results(OPS[name], "cuda", args, kwargs), results(OPS[name], "cpu", args, kwargs))


@pytest.mark.slow
@by_formulas
@pytest.mark.parametrize("name", sorted(OPS.keys() - NOT_ON_A_DEVICE.keys()))
def test_operations_on_all_examples(name: str) -> None:
    for args, kwargs in examples(OPS[name]):
        assert_equal(results(OPS[name], "cuda", args, kwargs), results(OPS[name], "cpu", args, kwargs))


OTHERS = {
    "rbm": {"hidden_size": 6, "chains": 0},
    "rbm, Gaussian": {"hidden_size": 6, "chains": 4, "units": "gaussian"},
    "boltzmann": {"chains": 4},
    "char_rnn": {"hidden_size": 8, "sequence_length": 6},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_models_train_and_are_evaluated_where_they_are(case: str) -> None:
    """Two steps of SGD, then the figures of a validation and of an evaluation."""
    rng = np.random.default_rng(0)
    rows = (rng.random((24, 7)) < 0.4).astype(np.float32)
    codes = rng.integers(5, size=200).astype(np.int32)
    text = data.Text("letters", codes, codes[:30], codes[30:60], data.Vocabulary("abcde"))
    cls = models.get(case.partition(",")[0])
    recipe = cls.recipe.__class__(epochs=1, batch_size=8, learning_rate=0.05)

    def figures(device: str) -> list[float]:
        dataset = text if case == "char_rnn" else data.Dataset("bits", rows, rows[:8], rows[8:16])
        init, noise = Generator(1), Generator(2)
        model = cls.build(dataset, OTHERS[case], init).to(device)
        optimizer = SGD(model.parameters(), lr=recipe.learning_rate)
        for i in range(2):
            batch = model.batches(dataset, recipe, 0, 0)[i]
            optimizer.zero_grad()
            model.compute_gradients(put_all(batch, device), generator=noise)
            optimizer.step()

        def quiet(done: int, total: int) -> None: ...

        found = model.measure(dataset, "test", recipe=recipe, samples=3, seed=0, data_seed=0, limit=None, report=quiet)
        numbers = [value for value in found.values() if isinstance(value, float)]
        assert numbers
        return [model.validate(dataset, recipe, 0, quiet), *numbers]

    np.testing.assert_allclose(figures("cuda"), figures("cpu"), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda x, y, b: ops.bernoulli_log_prob(x, y),
        lambda x, y, b: ops.gaussian_sample(x, y, generator=Generator(3))[0],
        lambda x, y, b: ops.linear(x, y, b, activation="tanh"),
    ],
    ids=["bernoulli_log_prob", "gaussian_sample", "linear"],
)
def test_kernels_store_half_types_themselves(call: Callable[..., Tensor]) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float16) for shape in ((5, 9), (5, 9), (5,))]
    expected = call(*map(gmcore.tensor, arrays))
    given = [gmcore.tensor(a, device="cuda") for a in arrays]
    with cuda_stand_in.counting() as counts:
        found = call(*given)
    if not has_gpu():
        assert counts["launch"] and not counts["elementwise"]  # nothing is converted
    assert found.dtype == expected.dtype == np.float16
    # A rounding to float16 on each side, of numbers below 16.
    np.testing.assert_allclose(found.cpu().numpy(), expected.numpy(), rtol=2e-3, atol=2e-3)


@by_formulas
def test_higher_orders_and_recomputation() -> None:
    def value(device: str) -> tuple[np.ndarray, ...]:
        x = gmcore.tensor(np.linspace(0.5, 1.5, 4), device=device, requires_grad=True)
        hessian = functional.hessian(lambda x: ops.sum(ops.sin(x) * x**3.0), x)
        y = gmcore.checkpoint(lambda x: ops.exp(x) * 2.0, x)
        return hessian.cpu().numpy(), gmcore.grad(ops.sum(y), x).cpu().numpy()

    for found, expected in zip(value("cuda"), value("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


# -- tensors -------------------------------------------------------------------------------------------------------
@by_formulas
def test_derivatives_are_checked_where_the_inputs_are() -> None:
    there = [gmcore.tensor(np.array(a), device="cuda") for a in (0.3, [0.2, 0.7])]
    assert gmcore.gradcheck(lambda x, y: ops.tanh(x * y), there, order=2)
    with pytest.raises(AssertionError, match="derivative of order 1"):
        gmcore.gradcheck(lambda x, y: x.detach() * y * y, there)


def test_transfers() -> None:
    x = gmcore.tensor([[1.0, 2.0]], device="cuda", requires_grad=True)
    assert x.device == "cuda:0" and "device='cuda:0'" in repr(x) and "[1., 2.]" in repr(x)
    assert x.to("cuda:0") is x is x.cuda() and x.cpu().device == "cpu"
    (x.cpu() * gmcore.tensor([3.0, 4.0])).sum().backward()
    assert x.grad is not None and x.grad.device == "cuda:0" and x.grad.tolist() == [[3.0, 4.0]]
    assert gmcore.tensor(x.detach()).device == "cuda:0" and gmcore.as_tensor(x._data)._data is x._data
    y = gmcore.tensor([[0.0, 0.0]], device="cuda")
    assert y.copy_(np.ones((1, 2), np.float32)).copy_(x).tolist() == [[1.0, 2.0]]
    assert (1.0 - 2.0 * x)[0, 1].item() == -3.0 and bool((x > 1.5).any())
    assert (x + np.float32(1)).dtype == np.float32 and (2 ** gmcore.tensor([3], device="cuda")).dtype == np.int64


def test_numbers_beside_tensors_are_copied_to_a_gpu_once() -> None:
    x = gmcore.tensor([1.0], device="cuda")
    x * 1.25
    with cuda_stand_in.counting() as counts:
        for _ in range(3):
            x * 1.25
    assert counts["to_device"] == counts["to_host"] == counts["synchronize"] == 0


def test_nothing_crosses_unasked() -> None:
    x = gmcore.tensor([1.0, 2.0], device="cuda")
    for refused in (x.numpy, lambda: np.asarray(x), lambda: np.unique(x)):
        with pytest.raises(DeviceError, match=r"tensor on cuda:0; copy its numbers to the CPU first, with .cpu\(\)"):
            refused()


def test_libraries_get_the_memory_without_a_copy() -> None:
    x = gmcore.tensor([1.0, 2.0], device="cuda")
    assert x.__dlpack_device__()[0] == 2
    again = gmcore.from_dlpack(x._data)
    assert again.device == "cuda:0" and again._data.data.ptr == x._data.data.ptr


HOST = gmcore.tensor(np.ones((2, 3), np.float32))
MIXED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "an operation": (lambda x: x + HOST, r"add\(x: float32\[2, 3\] on cuda:0, y: float32\[2, 3\] on cpu\)"),
    "an array": (lambda x: x * np.ones(3, np.float32), r"multiply\(.* on cuda:0, y: float32\[3\] on cpu\)"),
    "a kernel": (lambda x: ops.linear(x, HOST), r"linear\(.*on cuda:0.*on cpu.*\)"),
    "a product": (lambda x: HOST @ x.T, r"matmul\(.*on cpu.*on cuda:0\)"),
    "a join": (lambda x: ops.concatenate([HOST, x]), r"concatenate\(.*on cpu.*on cuda:0\)"),
    "a condition": (lambda x: ops.where(HOST > 0, x, 0.0), r"where\(.*on cpu.*on cuda:0\)"),
}


@pytest.mark.parametrize("call, text", MIXED.values(), ids=MIXED)
def test_devices_do_not_mix(call: Callable[[Tensor], Any], text: str) -> None:
    x = HOST.to("cuda")
    with pytest.raises(DeviceError, match=text + r": expected all on one device; move some with .to\('cuda:0'\)"):
        call(x)


def test_a_gradient_is_where_its_tensor_is() -> None:
    x = gmcore.tensor([1.0], device="cuda", requires_grad=True)
    with pytest.raises(DeviceError, match="the gradient is on cpu, expected the tensor's device cuda:0"):
        (x * 2.0).backward(gmcore.tensor([1.0]))
    x.grad = gmcore.tensor([1.0])
    with pytest.raises(DeviceError, match="a gradient is on cpu, expected its parameter's device cuda:0"):
        SGD([x]).step()


# -- names of devices, and machines without a GPU -------------------------------------------------------------------
@pytest.mark.parametrize("name", ["graphics", "cuda:", "cuda:x", "cpu:0", "", 0])
def test_a_device_has_a_name(name: Any) -> None:
    with pytest.raises(ArgumentError, match="expected 'cpu', 'cuda' or 'cuda:0' .called at"):
        gmcore.tensor([1.0], device=name)


@emulated
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    asked = (lambda: gmcore.tensor([1.0], device="cuda"), lambda: nn.Linear(2, 1).to("cuda"),
             lambda: ops.normal((2,), device="cuda"), lambda: gmcore.fit("vae", device="cuda"))  # fmt: skip
    for changes, text in (
        ({"error": 35}, "no GPU can be used: there is no NVIDIA driver: install one .*without a GPU everything runs"),
        ({"devices": 0}, "no GPU can be used: the driver sees no GPU .is CUDA_VISIBLE_DEVICES empty"),
    ):
        with cuda_stand_in.machine(**changes):
            for ask in asked:
                with pytest.raises(DeviceError, match=text):
                    ask()
            assert cli.main(["train", "vae", "--device", "cuda"]) == 2
            assert re.search(f"gmcore: error: {text}", capsys.readouterr().err)
    with pytest.raises(DeviceError, match="device 'cuda:3': expected one of the 1 GPUs here"):
        gmcore.tensor([1.0], device="cuda:3")


@emulated
@pytest.mark.parametrize(
    "driver, remedy",
    [
        (12040, r'update the driver, or pip uninstall cupy-cuda13x, then pip install "gmcore\[cuda12\]"; without'),
        (11080, "update the driver; without"),
    ],
)
def test_a_driver_that_is_too_old(driver: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: driver)
    with (
        cuda_stand_in.machine(error=35),
        pytest.raises(DeviceError, match=f"no GPU can be used: the driver is too old: .*{remedy}"),
    ):
        gmcore.tensor([1.0], device="cuda")


@pytest.mark.parametrize("driver, extra", [(None, "cuda13"), (12080, "cuda12")])
def test_a_machine_without_cupy_says_how_to_get_it(
    driver: int | None, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(devices, "driver_version", lambda: driver)
    with pytest.raises(MissingPackageError, match=rf'CuPy is not installed: pip install "gmcore\[{extra}\]"'):
        gmcore.tensor([1.0], device="cuda")


def test_a_machine_without_a_gpu_works_on_the_cpu_without_a_warning() -> None:
    with cuda_stand_in.machine(error=35), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = gmcore.tensor([1.0], device="cpu", requires_grad=True)
        (nn.Linear(1, 1)(x) * 2.0).sum().backward()


@emulated
def test_a_second_gpu() -> None:
    with cuda_stand_in.machine(devices=2):
        x = gmcore.tensor([1.0, 2.0], device="cuda:1")
        y = gmcore.tensor([1.0, 2.0], device="cuda")
        assert (x.device, y.device) == ("cuda:1", "cuda:0")
        assert x.to("cuda:0").device == "cuda:0" and x.cpu().tolist() == [1.0, 2.0]
        with pytest.raises(GmcoreError, match="device"):
            x + y


# -- no room ---------------------------------------------------------------------------------------------------------
LARGE = np.ones((1 << 10, 1 << 10), np.float32)
NO_ROOM: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a tensor": (lambda x: gmcore.tensor(LARGE, device="cuda"), "tensor: "),
    "a copy of one": (lambda x: gmcore.tensor(x), "tensor: "),
    "a transfer": (lambda x: gmcore.tensor(LARGE).to("cuda"), "Tensor.to: "),
    "a module": (lambda x: nn.Linear(1 << 10, 1 << 10, device="cuda"), "Linear: "),
    "a module that is moved": (lambda x: nn.Linear(1 << 10, 1 << 10).to("cuda"), "Module.to: "),
    "zeros": (lambda x: x.new_zeros(x.shape), "Tensor.new_zeros: "),
    "an operation": (ops.exp, r"exp\(x: float32\[1024, 1024\]\): "),
    "a number": (lambda x: x * 1.5, r"multiply\(x: float32\[1024, 1024\], y: float32\[\]\): "),
    "a join": (lambda x: ops.concatenate([x, x]), r"concatenate\(xs\[0\]: float32\[1024, 1024\], .*"),
    "a half type": (  # in float32 there is room for the input, and then for no result
        lambda x: ops.sigmoid(Tensor(x._data[:128].view(np.float16))),
        r"sigmoid\(x: float16\[128, 2048\]\): ",
    ),
    "a draw": (lambda x: ops.normal((1 << 20,), device="cuda"), r"normal\(.*shape=\(1048576,\).*\(backend '\w+'\): "),
    "a kernel": (lambda x: ops.linear(x, x), r"linear\(x: float32\[1024, 1024\], .*\(backend '\w+'\): "),
    "a derivative": (lambda x: x.requires_grad_()[0, 0].backward(), r"scatter_add\(x: float32\[\], .*"),
    "an optimiser": (lambda x: Adam([x]).step(), "FusedOptimizer.step: "),
    "a clipped gradient": (lambda x: clip_grad_norm_([x], 1e-3), "clip_grad_norm_: "),
}


@pytest.mark.parametrize("call, text", NO_ROOM.values(), ids=NO_ROOM)
def test_no_room_is_said_and_leaves_the_room_there_is(call: Callable[[Tensor], Any], text: str) -> None:
    """Nothing is held even while the error lives: who handles it may go on in smaller batches."""
    pool = cupy.get_default_memory_pool()
    gc.collect()
    gc.disable()
    pool.free_all_blocks()
    x = gmcore.tensor(LARGE, device="cuda")
    x.grad = gmcore.tensor(x)
    asked = r"for 4.0 MiB|\(CuPy: Out of memory allocating [148],[\d,]+ bytes .*\)"
    there = r"(1.5 MiB|512.0 KiB) of [\d.]+ GiB are free, and .*; free arrays .*, or work in smaller batches"
    before = pool.used_bytes()
    pool.set_limit(before + (3 << 19))
    try:
        message = f"^{text}no room on cuda:0 ({asked}): {there} .called at {__file__}:"
        with pytest.raises(DeviceMemoryError, match=message) as caught:
            call(x)
        assert isinstance(caught.value, MemoryError)
        assert pool.used_bytes() - before <= 1 << 12, "more is kept than a key, or numbers beside tensors"
        assert ops.exp(x[:64]).shape == (64, 1 << 10)
    finally:
        pool.set_limit(0)
        gc.enable()


# -- random numbers ----------------------------------------------------------------------------------------------
DRAWS: dict[str, Callable[..., Tensor]] = {
    "normal": lambda device, generator: ops.normal((3, 5), device=device, generator=generator),
    "uniform": lambda device, generator: ops.uniform((7,), dtype="float64", device=device, generator=generator),
    "gaussian_sample": lambda device, generator: ops.gaussian_sample(
        *[gmcore.tensor(np.zeros((2, 3), np.float32), device=device)] * 2, samples=2, generator=generator)[0],
    "bernoulli_sample": lambda device, generator: ops.bernoulli_sample(
        gmcore.tensor(np.full(9, 0.4, np.float32), device=device), generator=generator),
    "dropout": lambda device, generator: ops.dropout(
        gmcore.tensor(np.ones(9, np.float32), device=device), 0.5, generator=generator),
    "poisson": lambda device, generator: ops.poisson(
        gmcore.tensor(np.full(5, 3.0), device=device), generator=generator),
}  # fmt: skip


@by_formulas
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_are_those_of_the_cpu(draw: Callable[..., Tensor]) -> None:
    for seed in (1, 2**63 + 5):
        found, expected = draw("cuda", Generator(seed)), draw("cpu", Generator(seed))
        assert found.device == "cuda:0" and found.cpu().numpy().tobytes() == expected.numpy().tobytes()


# -- modules -------------------------------------------------------------------------------------------------------
X = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
IMAGES = np.random.default_rng(4).standard_normal((2, 4, 6, 5)).astype(np.float32)
MODULES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "Linear": (lambda: nn.Linear(6, 3), X),
    "Bilinear": (lambda: nn.Bilinear(6, 6, 2), (X, X)),
    "Conv1d": (lambda: nn.Conv1d(4, 2, 3), IMAGES[0].swapaxes(0, 1)),
    "Conv2d": (lambda: nn.Conv2d(4, 2, 3, padding=1, stride=2), IMAGES),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 2, 3, stride=2), IMAGES),
    "LayerNorm": (lambda: nn.LayerNorm(6), X),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGES),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), X),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGES),
    "Embedding": (lambda: nn.Embedding(5, 3, padding_idx=0), np.array([[1, 4, 1], [0, 2, 1]])),
    "RNN": (lambda: nn.RNN(6, 3, bidirectional=True), IMAGES[0].reshape(5, 4, 6)),
    "LSTM": (lambda: nn.LSTM(6, 3), IMAGES[0].reshape(5, 4, 6)),
    "LSTM of symbols": (lambda: nn.LSTM(6, 3), np.array([[1, 5], [0, 2], [1, 1]])),
    "GRU": (lambda: nn.GRU(6, 3, num_layers=2), IMAGES[0].reshape(5, 4, 6)),
    "LSTMCell": (lambda: nn.LSTMCell(6, 3), X),
    "PReLU": (lambda: nn.PReLU(), X),
    "Dropout": (lambda: nn.Dropout(0.4), X),
    "Dropout2d": (lambda: nn.Dropout2d(0.4), IMAGES),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), IMAGES),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), IMAGES),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d((2, 3)), IMAGES),
    "GELU": (lambda: nn.GELU(), X),
    "Softmax": (lambda: nn.Softmax(-1), X),
    "CrossEntropyLoss": (lambda: nn.CrossEntropyLoss(label_smoothing=0.1), (X, np.array([0, 5, 2, 2]))),
    "NLLLoss": (lambda: nn.NLLLoss(ignore_index=2), (X, np.array([0, 5, 2, 2]))),
    "a net": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), X),
}


def run_module(make: Callable[[], nn.Module], inputs: Any, device: str) -> dict[str, np.ndarray]:
    gmcore.manual_seed(7)
    module = make().to(device)
    given = [gmcore.tensor(x, device=device) for x in (inputs if isinstance(inputs, tuple) else (inputs,))]
    outputs = tensors(module(*given))
    total = sum((ops.sum(ops.square(y)) for y in outputs[1:]), ops.sum(ops.square(outputs[0])))
    total.backward() if total.requires_grad else None
    assert {t.device for t in (*module.parameters(), *module.buffers())} <= {given[0].device}
    found = {f"output {i}": y.detach().cpu().numpy() for i, y in enumerate(outputs)}
    found |= {
        f"gradient of {name}": p.grad.cpu().numpy() for name, p in module.named_parameters() if p.grad is not None
    }
    return found | {name: b.cpu().numpy() for name, b in module.named_buffers()}


@by_formulas
@pytest.mark.parametrize("make, inputs", MODULES.values(), ids=MODULES)
def test_modules(make: Callable[[], nn.Module], inputs: Any) -> None:
    found, expected = (run_module(make, inputs, device) for device in ("cuda", "cpu"))
    assert found.keys() == expected.keys() and any("output" in name for name in found)
    for name, value in expected.items():
        # float32: sums of some 100 products, in another order, relative to the largest of them.
        np.testing.assert_allclose(
            found[name], value, rtol=1e-5, atol=1e-5 * max(1.0, np.abs(value).max()), err_msg=name
        )


def test_a_module_is_made_on_a_device_and_moved() -> None:
    gmcore.manual_seed(1)
    there = nn.Linear(3, 2, device="cuda")
    gmcore.manual_seed(1)
    layer = nn.Linear(3, 2)
    assert there.weight.device == "cuda:0"
    np.testing.assert_array_equal(there.weight.detach().cpu().numpy(), layer.weight.detach().numpy())
    weight = layer.weight
    layer(gmcore.tensor(np.ones((1, 3), np.float32))).sum().backward()
    assert layer.cuda() is layer and layer.weight is weight and weight.device == weight.grad.device == "cuda:0"
    assert layer.to(gmcore.tensor([1.0], dtype="float64")).weight.device == "cpu" and weight.dtype == np.float64


@by_formulas
def test_packed_sequences() -> None:
    def run(device: str) -> list[np.ndarray]:
        gmcore.manual_seed(2)
        rnn = nn.GRU(6, 3).to(device)
        x = gmcore.tensor(IMAGES[0].reshape(5, 4, 6), device=device, requires_grad=True)
        packed = nn.utils.rnn.pack_padded_sequence(x, [2, 5, 1, 3], enforce_sorted=False)
        padded, lengths = nn.utils.rnn.pad_packed_sequence(rnn(packed)[0])
        ops.sum(ops.square(padded)).backward()
        return [padded.detach().cpu().numpy(), lengths.cpu().numpy(), x.grad.cpu().numpy()]

    for found, expected in zip(run("cuda"), run("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# -- states of a Boltzmann machine --------------------------------------------------------------------------------
MACHINE = (np.full((3, 6), 0.1, np.float32), np.zeros(6, np.float32), np.zeros(3, np.float32))
OF_STATES: dict[str, Callable[..., Any]] = {
    "free_energy": ops.free_energy,
    "gibbs_chain": ops.gibbs_chain,
    "contrastive_divergence": lambda x, *machine: ops.contrastive_divergence(x, x, *machine),
    "boltzmann_sweep": lambda x, weight, bias, _: ops.boltzmann_sweep(
        x, gmcore.tensor(np.eye(6) * 0, device="cuda"), bias
    ),
    "rbm": lambda x, *machine: rbm.RBM(6, 3).cuda().compute_gradients(x, generator=Generator(1)),
}


@pytest.mark.parametrize("call", OF_STATES.values(), ids=OF_STATES)
def test_states_that_are_none_are_refused(call: Callable[..., Any]) -> None:
    x, *machine = (gmcore.tensor(a, device="cuda") for a in (np.full((4, 6), 7.0, np.float32), *MACHINE))
    with pytest.raises(ArgumentError, match=r"states of Bernoulli units must be in \{0, 1\}.* got 7.* \(called at "):
        call(x, *machine)


# -- optimisers ------------------------------------------------------------------------------------------------------
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: Adam(p, lr=0.1, amsgrad=True),
    "Adagrad": lambda p: Adagrad(p, lr=0.1),
    "Adadelta": lambda p: Adadelta(p),
    "RMSprop": lambda p: RMSprop(p, lr=0.1, centered=True, momentum=0.5),
    "LBFGS": lambda p: LBFGS(p, lr=0.5, max_iter=3, line_search_fn="strong_wolfe"),
}


def descend(optimizer: Any, params: list[Tensor], steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((ops.sum(ops.square(p) * ops.exp(0.1 * p)) for p in params[1:]), ops.sum(params[0] ** 4.0))
        loss.backward()
        return loss

    for _ in range(steps):
        if isinstance(optimizer, LBFGS):
            optimizer.step(closure)
        else:
            closure()
            clip_grad_norm_(params, 1.0)
            clip_grad_value_(params, 0.5)
            optimizer.step()


@by_formulas
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimisers(make: Callable[..., Any], tmp_path: Path) -> None:
    """Three steps equal the CPU's; the state is saved from one device and goes on on the other."""
    params: dict[str, list[Tensor]] = {}
    optimizers, averages = {}, {}
    for device in ("cpu", "cuda"):
        params[device] = [gmcore.tensor(a, device=device, requires_grad=True) for a in (X[0] + 2, X[1:3])]
        optimizers[device], averages[device] = make(params[device]), EMA(params[device], 0.5)
        descend(optimizers[device], params[device], 3)
        averages[device].update()
    states = [s for state in optimizers["cuda"].state.values() for s in state.values() if isinstance(s, Tensor)]
    assert states and {s.device for s in states} == {"cuda:0"}

    def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
        assert found.keys() == expected.keys()
        for name in expected:  # float32, three steps of some ten roundings each
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)

    saved = optimizers["cuda"].state_dict()
    assert_alike(saved, optimizers["cpu"].state_dict())
    assert_alike(averages["cuda"].state_dict(), averages["cpu"].state_dict())
    io.save(tmp_path / "state.safetensors", saved)
    there = make([gmcore.tensor(p.detach().cpu().numpy(), requires_grad=True) for p in params["cuda"]])
    there.load_state_dict(io.load(tmp_path / "state.safetensors")[0])
    for optimizer in (optimizers["cuda"], there):
        descend(optimizer, optimizer.param_groups[0]["params"], 1)
    assert_alike(there.state_dict(), optimizers["cuda"].state_dict())


@by_formulas
@pytest.mark.parametrize("make", [m for name, m in OPTIMIZERS.items() if name != "LBFGS"])
def test_parameters_on_two_devices_are_updated_where_they_are(make: Callable[..., Any]) -> None:
    found = []
    for other in ("cuda", "cpu"):
        devices = ["cpu", other]
        params = [gmcore.tensor(X[i], device=device, requires_grad=True) for i, device in enumerate(devices)]
        optimizer, average = make(params), EMA(params, 0.5)
        for _ in range(2):
            for p in params:
                p.grad = p.detach() * 0.5
            optimizer.step()
        average.update()
        assert [a.device.removesuffix(":0") for a in average.averages.values()] == devices
        found.append([p.detach().cpu().numpy() for p in (*params, *average.averages.values())])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_on_two_devices_are_not_clipped_together() -> None:
    params = [gmcore.tensor(X[0], device=device, requires_grad=True) for device in ("cuda", "cpu")]
    for p in params:
        p.grad = p.detach()
    with pytest.raises(DeviceError, match="^clip_grad_norm_: gradients are on cpu and cuda:0; clip those of each "):
        clip_grad_norm_(params, 1.0)


def test_a_state_left_behind_is_named_and_taken_along() -> None:
    layer = nn.Linear(3, 2)
    optimizer = Adam(layer.parameters())
    descend(optimizer, list(layer.parameters()), 1)
    layer.cuda()
    with pytest.raises(DeviceError, match="exp_avg of a parameter is on cpu and the parameter on cuda:0; .*state_dict"):
        descend(optimizer, list(layer.parameters()), 1)
    optimizer.load_state_dict(optimizer.state_dict())
    descend(optimizer, list(layer.parameters()), 1)


def test_weights_are_saved_from_a_gpu_and_loaded_to_one(tmp_path: Path) -> None:
    layer = nn.BatchNorm1d(3).cuda()
    layer.running_mean.copy_(np.arange(3, dtype=np.float32))
    io.save(tmp_path / "weights.safetensors", layer.state_dict())
    arrays, _ = io.load(tmp_path / "weights.safetensors")
    for device in ("cpu", "cuda"):
        other = nn.BatchNorm1d(3, device=device)
        other.load_state_dict(arrays if device == "cpu" else layer.state_dict())
        assert other.running_mean.tolist() == [0.0, 1.0, 2.0] and other.running_mean.device.startswith(device)


# -- training ------------------------------------------------------------------------------------------------------
ROWS = (np.random.default_rng(5).random((40, 12)) < 0.3).astype(np.float32)
MODELS: dict[str, Callable[[], Any]] = {
    "VAE, estimator B": lambda: VAE(12, 3, (5,), generator=Generator(1)),
    "VAE, estimator A": lambda: VAE(12, 3, (5,), estimator="A", samples=2, generator=Generator(1)),
    "VAE, Gaussian": lambda: VAE(12, 3, (5,), likelihood="gaussian", generator=Generator(1)),
    "IWAE": lambda: IWAE(12, 3, (5,), samples=4, generator=Generator(1)),
}


def train(make: Callable[[], Any], device: str, steps: int) -> list[float]:
    model = make().to(device)
    optimizer, generator = Adam(model.parameters(), lr=1e-2), Generator(9)
    losses = []
    for i in range(steps):
        optimizer.zero_grad()
        loss, _ = model.loss(gmcore.tensor(ROWS[8 * i : 8 * i + 8], device=device), generator=generator)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with gmcore.no_grad():
        x = gmcore.tensor(ROWS[:5], device=device)
        losses.append(float(model.log_likelihood(x, samples=3, generator=generator).numpy().sum()))
        losses.append(float(model.sample(2, generator=generator).cpu().numpy().sum()))
    return losses


@by_formulas
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(m, id=n, marks=pytest.mark.slow if n in ("VAE, estimator A", "VAE, Gaussian") else ())
        for n, m in MODELS.items()
    ],
)
def test_training_gives_the_losses_of_the_cpu(make: Callable[[], Any]) -> None:
    # The same noise: other noise would move the losses by a tenth. Roundings of float32 grow with Adam's steps.
    np.testing.assert_allclose(train(make, "cuda", 4), train(make, "cpu", 4), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VAE, estimator B", "IWAE"])
def test_training_uses_our_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of a spec that has a kernel for GPUs falls back to the formula, and there are such calls."""
    chosen: dict[str, str] = {}
    select = registry.select

    def recording(spec: Any, *args: Any) -> Any:
        entry = select(spec, *args)
        if registry.signature(spec, *args[:2]).device != "cpu":
            chosen[spec.name] = entry.backend
        return entry

    monkeypatch.setattr(registry, "select", recording)
    monkeypatch.setattr(registry, "_plans", {})
    np.testing.assert_allclose(train(MODELS[name], "cuda", 1), train(MODELS[name], "cpu", 1), rtol=2e-5)
    ours = {name for name in chosen if registry.entries(name).keys() & {"triton", "cuda"}}
    assert {"gaussian_sample", "adam", "linear", "linear_bernoulli_log_prob"} <= ours
    assert chosen.keys() - ours <= {"sum", "sum_to"}
    assert {name: chosen[name] for name in ours if chosen[name] not in ("triton", "cuda")} == {}


@pytest.mark.slow
def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train on a GPU, resume there and on the CPU, evaluate and sample: all as on the CPU."""
    np.save(tmp_path / "rows.npy", ROWS)

    def run(*words: Any) -> Any:
        cli.main([str(word) for word in words])
        return capsys.readouterr().out

    bounds = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        settings = ["--set", "hidden_sizes=[5]", "--set", "latent_size=2", "--set", "eval_samples=4", "--batch-size", 8]
        run("train", "vae", "--data", tmp_path / "rows.npy", "--out", out, "--device", device, "--epochs", 1, *settings)
        assert json.loads((out / "config.json").read_text())["device"] == {"cpu": "cpu", "cuda": "cuda:0"}[device]
        run("train", "--resume", out, "--epochs", 2)
        bounds[device] = json.loads(run("evaluate", out, "--json"))["bound"]
    assert bounds["cuda"] == pytest.approx(bounds["cpu"], rel=1e-4)
    here = json.loads(run("evaluate", tmp_path / "cpu", "--json", "--device", "cuda"))["bound"]
    assert here == pytest.approx(bounds["cpu"], rel=1e-5)
    run("sample", tmp_path / "cuda", "-n", 3, "--device", "cuda", "--out", tmp_path / "samples.npy")
    assert np.load(tmp_path / "samples.npy").shape == (3, 12)
    run("train", "--resume", tmp_path / "cuda", "--epochs", 3, "--device", "cpu")
    assert json.loads((tmp_path / "cuda" / "config.json").read_text())["device"] == "cpu"


COMMANDS = {
    "vae": ("vae", "rows.npy", "hidden_sizes=[5]", "latent_size=2", "eval_samples=4"),
    "iwae": ("iwae", "rows.npy", "hidden_sizes=[5]", "latent_size=2", "samples=3", "eval_samples=4"),
    "rbm": ("rbm", "rows.npy", "hidden_size=5", "chains=4"),
    "rbm, annealed": ("rbm", "rows.npy", "hidden_size=21", "units=gaussian", "temperatures=30", "eval_samples=6"),
    "boltzmann": ("boltzmann", "rows.npy", "chains=4"),
    "char_rnn": ("char_rnn", "text.txt", "hidden_size=6", "num_layers=1", "sequence_length=5"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name, file, settings", [(a, b, c) for a, b, *c in COMMANDS.values()], ids=COMMANDS)
def test_models_on_the_command_line(
    name: str, file: str, settings: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They train captured, are evaluated and pictured on a GPU, with the figures of the CPU."""
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "text.txt").write_text("so it goes, and so it went; " * 14)
    monkeypatch.setattr(language, "SAMPLE_LENGTH", 5)
    monkeypatch.setattr(char_rnn, "FLOW_STEPS", 3)
    monkeypatch.setattr(rbm, "_SAMPLE_STEPS", 3)
    monkeypatch.setattr(rbm, "_PICTURED_STEPS", (0, 1, 3))
    monkeypatch.setattr(boltzmann_machine, "_SAMPLE_SWEEPS", 3)
    bounds = {}
    for device in ("cpu", "cuda"):
        words = ["train", name, "--data", tmp_path / file, "--device", device, "--out", tmp_path / device]
        words += ["--epochs", 1, "--batch-size", 8, *[word for each in settings for word in ("--set", each)]]
        cli.main([str(word) for word in words])
        told = capsys.readouterr()
        assert "captured" in told.err and "eager" not in told.err
        cli.main(["evaluate", str(tmp_path / device), "--device", device, "--json"])
        bounds[device] = json.loads(capsys.readouterr().out)["bound"]
        assert (tmp_path / device / models.get(name).samples_file).stat().st_size
    assert bounds["cuda"] == pytest.approx(bounds["cpu"], rel=1e-3)


@pytest.mark.slow
@emulated
def test_training_and_evaluation_on_a_second_gpu(tmp_path: Path) -> None:
    """Make it the current one themselves, and give what the first gives."""
    dataset = data.Dataset("bits", ROWS[:24], ROWS[24:32], ROWS[32:])
    settings = {"hidden_sizes": [5], "latent_size": 2, "eval_samples": 4}
    bounds = []
    with cuda_stand_in.machine(devices=2):
        for device in ("cuda:0", "cuda:1"):
            run = gmcore.fit(
                "vae", dataset, epochs=1, batch_size=4, device=device, out=tmp_path / device, settings=settings
            )
            assert run.model.device == device and cupy.cuda.Device().id == 0
            bounds += [run.result["bound"], evaluate(run.path, data=dataset, device=device)["bound"]]
    assert len(set(bounds)) == 1
