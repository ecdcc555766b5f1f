"""Captured steps on a GPU: CUDA graphs with the bits of eager steps, fresh numbers, and nothing that crosses."""

import gc

import numpy as np
import pytest

import gmcore
from gmcore import nn, ops, optim
from gmcore.capture import CaptureWarning
from gmcore.errors import ArgumentError, CaptureError, DeviceError, DeviceMemoryError
from gmcore.graph import GraphProgram
from gmcore.random import Generator
from gmcore.watch import computed
from tests.support import cuda_stand_in
from tests.support.cupy_stand_in import has_gpu

cupy = pytest.importorskip("cupy")
emulated = pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")
STEPS = 14
"""The first few are recorded; a short batch in every four."""


class Net:
    """A variational autoencoder in small: sampling, two products a side, a schedule, and a clipped gradient."""

    def __init__(self, device="cuda"):
        gmcore.manual_seed(1)
        self.encoder, self.decoder = nn.Linear(6, 8).to(device), nn.Linear(4, 6).to(device)
        self.parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimizer = optim.Adam(self.parameters, lr=1e-2)
        self.generator = Generator(2)

    def step(self, x, weight):
        self.optimizer.zero_grad()
        mu, logvar = ops.split(self.encoder(x), 2, axis=-1)
        z, kl, _ = ops.gaussian_sample(mu, logvar, generator=self.generator)
        log_p = ops.bernoulli_log_prob(self.decoder(ops.tanh(z)), x)
        loss = ops.mean(weight * kl - log_p)
        loss.backward()
        optim.clip_grad_norm_(self.parameters, 0.5)
        self.optimizer.step()
        return loss, z


def batches():
    rng = np.random.default_rng(3)
    for i in range(STEPS):
        yield (rng.random((3 if i % 4 == 3 else 5, 6)) < 0.4).astype(np.float32), np.float32(0.1 * i)


def bits(tensors):
    return [t.detach().cpu().numpy().tobytes() for t in tensors]


def training(capture, device="cuda", arguments="cuda"):
    """Bits of the results of `STEPS` steps, and of parameters and gradients after them."""
    net = Net(device)
    run = gmcore.capture(net.step) if capture else net.step
    found = []
    for i, (x, weight) in enumerate(batches()):
        net.optimizer.param_groups[0]["lr"] = 1e-2 * 0.9**i
        x, weight = gmcore.tensor(x, device=arguments), gmcore.tensor(weight, device=arguments)
        found += run(x.to(device), weight.to(device)) if not capture else run(x, weight)
    return bits(found), bits(net.parameters), bits([p.grad for p in net.parameters]), net, run


@pytest.mark.slow
def test_graphs_have_the_bits_of_eager_steps():
    *eager, _, _ = training(False)
    *captured, _, run = training(True)
    assert len(run.programs) == 2 and run.refusal is None
    assert captured == eager


@pytest.mark.slow
def test_a_gpu_computes_what_the_cpu_does():
    (losses, *_), (expected, *_) = training(True), training(False, "cpu", "cpu")
    for a, b in zip(losses, expected, strict=True):
        np.testing.assert_allclose(np.frombuffer(a, np.float32), np.frombuffer(b, np.float32), rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_arguments_on_the_cpu_go_along():
    def moving(net):
        return lambda x, weight: Net.step(net, x.to("cuda"), weight.to("cuda"))

    net = Net()
    run = gmcore.capture(moving(net))
    found = [t for x, w in batches() for t in run(gmcore.tensor(x), gmcore.tensor(w))]
    assert run.programs and bits(found) == bits_of_constant_rate()


def bits_of_constant_rate():
    net = Net()
    return bits([t for x, w in batches() for t in net.step(*[gmcore.tensor(a, device="cuda") for a in (x, w)])])


@pytest.mark.slow
def test_a_repetition_is_one_launch_of_a_graph():
    *_, net, run = training(True)
    x, weight = next(batches())
    x, weight = (gmcore.tensor(a, device="cuda") for a in (x, weight))
    run(x, weight)
    with cuda_stand_in.counting() as counts:
        run(x, weight)
    if not has_gpu():
        assert counts["graph"] == 1 and not counts["launch"] and not counts["to_host"]


def test_each_repetition_draws_anew():
    generator = Generator(7)
    x = gmcore.tensor(np.zeros(4, np.float32), device="cuda")
    draw = gmcore.capture(lambda x: x + ops.normal((4,), generator=generator, device="cuda"))
    found = bits([draw(x) for _ in range(6)])
    generator.manual_seed(7)
    assert found == bits([x + ops.normal((4,), generator=generator, device="cuda") for _ in range(6)])
    assert len(set(found)) == 6


@emulated
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_kernels_that_store_half_types_write_where_the_program_has_room(dtype):
    """A graph of two launches, as in float32: neither result is copied from where an operation had put it."""
    draw = np.random.default_rng(0).standard_normal
    x, weight = (gmcore.tensor(draw((n, 5), np.float32), dtype=dtype, device="cuda") for n in (3, 5))
    run = gmcore.capture(lambda x: ops.linear(ops.linear(x, weight), weight))
    found = [run(x) for _ in range(3)]
    (program,) = run.programs
    assert [kind for kind, *_ in program._graph._work] == ["launch"] * 2
    assert len(set(bits(found))) == 1


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 4, 5)), ((3, 1, 2, 4), (2, 4, 5)), ((4,), (2, 4, 5)), ((4,), (4,))])
@pytest.mark.parametrize("dtype", ["float16", "float64", "mixed"])
def test_stacks_of_products_are_captured(shapes, dtype):
    """With their gradients, by the kernel: CuPy's would be cuBLAS's, which a graph does not take."""
    draw = np.random.default_rng(0).standard_normal
    kinds = ("float16", "float32") if dtype == "mixed" else (dtype, dtype)
    numbers = [draw(shape).astype(kind) for shape, kind in zip(shapes, kinds, strict=True)]

    def step(x, y):
        x, y = (a.detach().requires_grad_() for a in (x, y))
        z = ops.matmul(x, y)
        return z, *gmcore.grad(ops.sum(z * z), [x, y])

    run = gmcore.capture(step)
    for _ in range(3):
        found = run(*[gmcore.tensor(a, device="cuda") for a in numbers])
    assert run.programs
    for a, b in zip(found, step(*map(gmcore.tensor, numbers)), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        tolerance = 1e-13 if dtype == "float64" else 4e-3
        np.testing.assert_allclose(a.detach().cpu().numpy(), b.detach().numpy(), rtol=tolerance, atol=tolerance)


def test_a_graph_that_cannot_be_made_changes_no_parameter(monkeypatch):
    call = GraphProgram._call

    def fail(program):
        call(program)
        raise CaptureError("no room")

    monkeypatch.setattr(GraphProgram, "_call", fail)

    def trained(wrap):
        p = gmcore.tensor(np.ones(3, np.float32), device="cuda", requires_grad=True)
        optimizer = optim.Adam([p], lr=0.1)

        def step(x):
            p.grad = x * 1.0
            optimizer.step()

        step = wrap(step)
        for _ in range(4):
            step(gmcore.tensor(np.ones(3, np.float32), device="cuda"))
        return bits([p])

    with pytest.warns(CaptureWarning, match="no room"):
        assert trained(lambda step: gmcore.capture(step, fallback=True)) == trained(lambda step: step)


# -- no room ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def pool():
    """Of CuPy's memory, with nothing that waits to be used again or to be collected."""
    pool = cupy.get_default_memory_pool()
    gc.collect()
    gc.disable()
    pool.free_all_blocks()
    yield pool
    pool.set_limit(0)
    gc.enable()


ROW = np.ones(1 << 18, np.float32)  # 1 MiB


@pytest.mark.parametrize("recorded", [0, 1])
def test_no_room_for_a_recording_leaves_a_step_that_can_be_called_again(recorded, pool):
    step = gmcore.capture(lambda x: ops.sum(ops.tanh(ops.exp(ops.square(x)))))
    x = gmcore.tensor(ROW, device="cuda")
    for _ in range(recorded):
        step(x)
    pool.free_all_blocks()
    before = pool.used_bytes()
    pool.set_limit(before + (7 << 19))
    with pytest.raises(DeviceMemoryError, match=r"<lambda>, in a recording .*: \w+\(x: float32\[262144\]\): no room "):
        step(x)
    assert pool.used_bytes() - before < 1 << 12
    pool.set_limit(0)
    assert len({step(x).item() for _ in range(4)}) == 1 and step.programs


def too_much():
    return cupy.empty(1 << 50, np.uint8)


def full():
    raise cupy.cuda.runtime.CUDARuntimeError(2)


PLACES = {
    "memory": (GraphProgram, "_allocate", lambda whole: (whole, too_much()), ""),
    "a kernel": (GraphProgram, "_bound", lambda whole: [too_much for _ in whole], r"\w+ .at .*\): "),
    "the graph": (cupy.cuda.Stream, "end_capture", lambda whole: (whole, full()), ""),
}


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_no_room_for_a_graph_is_said_after_an_eager_step(place, fallback, pool, monkeypatch):
    if has_gpu() and place == "the graph":
        pytest.skip("methods of CuPy's streams cannot be exchanged")
    weight = gmcore.tensor(np.float32(0), device="cuda")
    weight.copy_(weight + 0.0)

    def count(x):
        weight.copy_(weight + 1.0)
        return ops.sum(ops.exp(ops.square(x)))

    step = gmcore.capture(count, fallback=fallback)
    x = gmcore.tensor(ROW, device="cuda")
    step(x)
    before = pool.used_bytes()
    kind, name, fail, where = PLACES[place]
    whole = getattr(kind, name)
    text = rf"the CUDA graph of a step that computes in \d\.\d MiB: {where}no room on cuda:0 \(CuPy: .* GiB are free; "
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, lambda self: fail(whole(self)))
        if fallback:
            with pytest.warns(CaptureWarning, match=text):
                step(x)
            assert "eager, since" in step.state
        else:
            with pytest.raises(DeviceMemoryError, match=text + ".* It has been run, eagerly") as caught:
                step(x)
            assert isinstance(caught.value, MemoryError)
    assert weight.item() == 2.0 and pool.used_bytes() - before < 1 << 12, "the graph's memory is kept"
    for _ in range(3):
        step(x)
    assert weight.item() == 5.0 and bool(step.programs) is not fallback


def test_no_room_for_the_results_of_a_repetition_leaves_it_undone(pool):
    weight = gmcore.tensor(np.zeros(1, np.float32), device="cuda")

    @gmcore.capture
    def step(x):
        weight.copy_(weight + 1.0)
        return weight + 0.0, ops.square(x)

    x = gmcore.tensor(ROW, device="cuda")
    for _ in range(3):
        step(x)
    assert step.programs
    before = pool.used_bytes()
    pool.free_all_blocks()
    pool.set_limit(before + (1 << 19))
    with pytest.raises(DeviceMemoryError, match="results of a captured step: no room on cuda:0 .*: 512.0 KiB of .*"):
        step(x)
    assert pool.used_bytes() == before and weight.item() == 3.0
    pool.set_limit(0)
    assert step(x)[0].item() == 4.0


@emulated
def test_a_gpu_without_kernels_of_ours_says_what_to_do():
    """There cuBLAS multiplies, which CuPy does not capture; what needs no product is captured."""
    with cuda_stand_in.machine(capability="75"):
        x = gmcore.tensor(np.ones((4, 4), np.float32), device="cuda")
        products, others = gmcore.capture(lambda x: ops.linear(x, x)), gmcore.capture(ops.exp)
        with pytest.raises(CaptureError, match=r"linear .*compute capability 7.5 .* need 8.0; .*fallback=True\)"):
            for _ in range(3):
                products(x)
        for _ in range(3):
            others(x)
        assert others.programs


@pytest.mark.parametrize(
    "name, call", [("cholesky", ops.cholesky), ("erfc", ops.erfc)], ids=["of CuPy", "through the host"]
)
def test_what_a_graph_cannot_hold_is_named_with_what_to_do(name, call):
    x = gmcore.tensor(np.eye(4, dtype=np.float32), device="cuda")
    step, eager = gmcore.capture(call), gmcore.capture(call, fallback=True)
    text = rf"{name} \(at .* cannot be part of a CUDA graph: .*; eager steps can, as with .*fallback=True\)"
    with pytest.raises(CaptureError, match=text):
        for _ in range(3):
            step(x)
    with pytest.warns(CaptureWarning, match="runs eagerly"):
        for _ in range(3):
            eager(x)
    for _ in range(2):
        np.testing.assert_array_equal(eager(x).cpu().numpy(), call(x).cpu().numpy())


@pytest.mark.parametrize("n", [3, 4, 10])
def test_tensors_are_joined_without_a_table_from_the_cpu(n, monkeypatch):
    """Which CuPy makes of their addresses where they are more than three."""
    theirs, most = cupy.concatenate, []
    monkeypatch.setattr(cupy, "concatenate", lambda xs, **rest: most.append(len(xs)) or theirs(xs, **rest))
    joined = gmcore.capture(lambda x: ops.concatenate([x + float(i) for i in range(n)], axis=1))
    for start in range(4):
        x = np.arange(start, start + 6, dtype=np.float32).reshape(2, 3)
        found = joined(gmcore.tensor(x, device="cuda")).cpu().numpy()
        np.testing.assert_array_equal(found, np.concatenate([x + np.float32(i) for i in range(n)], axis=1))
    assert joined.programs and 1 < max(most) <= 3


def test_numbers_in_the_cpus_memory_are_read_at_each_repetition():
    weight = gmcore.tensor(np.ones(3, np.float32))
    step = gmcore.capture(lambda x: x * weight.to("cuda"))
    x = gmcore.tensor(np.arange(3, dtype=np.float32), device="cuda")
    for i in range(6):
        weight.copy_(np.full(3, i if step.programs else 1, np.float32))
        assert step(x).tolist() == (np.arange(3) * weight.numpy()).tolist()
    assert step.programs


@pytest.mark.parametrize(
    "look", [lambda y: y.item(), lambda y: float(y), lambda y: ops.sum(y).cpu()], ids=["item", "float", "cpu"]
)
def test_numbers_that_go_back_to_the_cpu_are_refused(look):
    @gmcore.capture
    def step(x):
        y = ops.sum(ops.exp(x))
        look(y)
        return y

    x = gmcore.tensor(np.ones(3, np.float32), device="cuda")
    with pytest.raises(CaptureError, match="looks at numbers|back to the CPU"):
        for _ in range(4):
            step(x)


def test_constants_of_the_cpu_are_handed_out_anew():
    run = gmcore.capture(lambda x: (ops.sum(x), np.arange(3.0), gmcore.Tensor(np.arange(3.0))))
    for i in range(STEPS):
        total, array, tensor = run(gmcore.tensor(np.full(3, float(i)), device="cuda"))
        assert array.tolist() == tensor.tolist() == [0.0, 1.0, 2.0] and total.item() == 3.0 * i
        array[:] = 9.0
        tensor.copy_(array)
    assert isinstance(run.programs[0], GraphProgram)


@pytest.mark.parametrize("of_cpu", [lambda x: x, ops.sum, lambda x: gmcore.tensor(np.ones(3))])
def test_results_in_the_cpus_memory_are_refused(of_cpu):
    """A graph would compute them, and leave them, on the GPU."""
    run = gmcore.capture(lambda x, y: (ops.sum(x), of_cpu(y)))
    with pytest.raises(CaptureError, match="in the CPU's memory"):
        for i in range(STEPS):
            x = np.full(3, float(i))
            assert run(gmcore.tensor(x, device="cuda"), gmcore.tensor(x))[1].device == "cpu"


@pytest.mark.slow
def test_explain_says_that_it_is_a_graph_and_whose_kernels_run():
    *_, run = training(True)
    text = gmcore.explain.captured(run)
    assert "one CUDA graph" in text
    kernels = [line.split()[1:3] for line in text.splitlines() if ":" in line.split(" -> ")[0]]
    assert kernels and "reference" not in {backend for _, backend in kernels}, kernels


# -- what the CPU gives --------------------------------------------------------------------------------------------
def test_what_the_cpu_gives_is_checked_before_a_graph_is_launched():
    """A check of numbers on the GPU would have Python wait for it."""
    table = gmcore.tensor(np.arange(4, dtype=np.float32), device="cuda")

    @gmcore.capture
    def step(symbols):
        computed(_check, symbols._data, most=3)
        return ops.getitem(table, symbols.to("cuda"))

    def codes(*numbers):
        return gmcore.tensor(np.array(numbers))

    for _ in range(3):
        assert step(codes(3, 0)).tolist() == [3.0, 0.0]
    assert step.programs
    with cuda_stand_in.counting() as counts, pytest.raises(ArgumentError, match="above 3"):
        step(codes(1, 4))
    assert not counts["graph"]
    assert step(codes(2, 2)).tolist() == [2.0, 2.0]


def _check(symbols, most):
    if symbols.max() > most:
        raise ArgumentError(f"above {most}")


# -- streams, and several GPUs -------------------------------------------------------------------------------------
@emulated
def test_a_repetition_waits_for_the_one_before_on_any_stream(monkeypatch):
    """All of its work lies between the wait for the end of the other and the event of its own end."""
    step = gmcore.capture(lambda x: ops.exp(x) * 2.0)
    x = gmcore.tensor(np.ones(3, np.float32), device="cuda")
    for _ in range(3):
        step(x)
    log = []
    submit, launch, record = cuda_stand_in.submit, cuda_stand_in.Graph.launch, cuda_stand_in.Event.record

    def noting(what, function):
        return lambda *args: log.append((what(*args), cupy.cuda.get_current_stream().ptr)) or function(*args)

    monkeypatch.setattr(cuda_stand_in, "submit", noting(lambda *args: "work", submit))
    monkeypatch.setattr(cuda_stand_in.Graph, "launch", noting(lambda *args: "work", launch))
    monkeypatch.setattr(cuda_stand_in.Event, "record", noting(lambda event, stream: event.ptr, record))
    monkeypatch.setattr(cuda_stand_in.Stream, "wait_event", lambda stream, event: log.append((-event.ptr, stream.ptr)))
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream in streams:
        with stream:
            step(x)
    first, second = ([entry for entry, stream in log if stream == each.ptr] for each in streams)
    done = first[-1]
    assert first[0] == second[0] == -done and second[-1] == done
    assert "work" in first[1:-1] and all(entry != -done for entry in first[1:])


@pytest.mark.gpu
def test_repetitions_on_several_streams_have_the_bits_of_one():
    generator = Generator(5)
    step = gmcore.capture(lambda x: ops.exp(x + ops.normal((1 << 20,), generator=generator, device="cuda")))
    x = gmcore.tensor(np.zeros(1 << 20, np.float32), device="cuda")
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    found = []
    for i in range(30):
        with streams[i % 3]:
            found.append(step(x))
    cupy.cuda.Device().synchronize()
    generator.manual_seed(5)
    eager = [ops.exp(x + ops.normal((1 << 20,), generator=generator, device="cuda")) for _ in range(30)]
    assert bits(found) == bits(eager)


def scaled(device):
    """A step with a parameter and a draw on a device, and the parameter."""
    weight = gmcore.tensor(np.full(4, 0.5, np.float32), device=device, requires_grad=True)
    optimizer, generator = optim.SGD([weight], lr=0.1), Generator(4)

    def step(x):
        optimizer.zero_grad()
        loss = ops.sum(ops.square(weight * x + ops.normal((4,), device=device, generator=generator)))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, weight


@emulated
def test_a_graph_of_a_second_gpu_runs_there_whichever_is_the_current_one():
    x = np.arange(4, dtype=np.float32)
    eager, expected = scaled("cuda:0")
    losses = [eager(gmcore.tensor(x * i, device="cuda:0")) for i in range(6)]
    with cuda_stand_in.machine(devices=2):
        step, weight = scaled("cuda:1")
        step = gmcore.capture(step)
        with cupy.cuda.Device(1):
            found = [step(gmcore.tensor(x * i, device="cuda:1")) for i in range(3)]
        assert step.programs and cupy.cuda.Device().id == 0
        found += [step(gmcore.tensor(x * i, device="cuda:1")) for i in range(3, 6)]
        assert {t.device for t in (*found, weight, weight.grad)} == {"cuda:1"}
        assert bits(found) == bits(losses) and bits([weight]) == bits([expected])


@emulated
@pytest.mark.parametrize("peers", [False, True])
def test_operations_on_a_gpu_that_is_not_the_current_one_are_refused(peers):
    with cuda_stand_in.machine(devices=2, peers=peers):
        x = gmcore.tensor(np.ones(3, np.float32), device="cuda:1")
        for call in (lambda: ops.exp(x), lambda: x + 1.0, lambda: ops.split(x * x, 3)):
            with pytest.raises(
                DeviceError,
                match=r"inputs are on cuda:1, and the current GPU is cuda:0; .* `with cupy.cuda.Device\(1\):`",
            ):
                call()
        with cupy.cuda.Device(1):
            assert (x + 1.0).device == "cuda:1"


@emulated
def test_a_graph_of_two_gpus_is_refused():
    with cuda_stand_in.machine(devices=2):
        step = gmcore.capture(lambda x: x.to("cuda:0") * 2.0)
        with pytest.raises(CaptureError, match="arrays on cuda:0 and cuda:1, and a CUDA graph is of one GPU"):
            for _ in range(3):
                step(gmcore.tensor(np.ones(3, np.float32), device="cuda:1"))
