"""The tape made visible: what is shown is what was recorded and what runs, and looking changes nothing."""

import re

import numpy as np
import pytest

import gmcore
from gmcore import engine, explain, ops
from gmcore.errors import GraphError, ShapeError
from gmcore.op import OPS, Op
from gmcore.tensor import Tensor, _mode


def leaf(shape: tuple[int, ...]) -> Tensor:
    return gmcore.tensor(np.full(shape, 0.5, np.float32), requires_grad=True)


def loss_of(x: Tensor, w: Tensor) -> Tensor:
    h = ops.linear(x, w, activation="tanh")  # the line that the test looks for
    z, kl, _ = ops.gaussian_sample(h, h * 0.1, key=gmcore.Generator(0).draw())
    return ops.sum(z * z) + ops.sum(kl)


def test_tape() -> None:
    x, w = leaf((4, 3)), leaf((2, 3))
    with explain.recording():
        loss = loss_of(x, w)
    assert _mode.get() is True
    tape = explain.tape(loss)
    assert tape.leaves == {"x1": x, "x2": w}
    assert [e.node.op.name for e in tape.entries] == [
        "linear", "multiply", "gaussian_sample", "multiply", "sum", "sum", "add"
    ]  # fmt: skip
    first, sample = tape.entries[0], tape.entries[2]
    assert first.arguments == ("x1", "x2", "float32[2]") and first.outputs == (((4, 2), np.float32),)
    assert first.note is not None and first.note.kernels[0].startswith("linear: ")
    assert first.note.line == f"{__file__}:{loss_of.__code__.co_firstlineno + 1}"
    assert sample.names == ("v3.z", "v3.kl", "v3.log_q") and sample.outputs[1] == ((4,), np.float32)
    # linear keeps its output; x and w are the leaves' own memory
    assert first.saved_bytes == 4 * 2 * 4
    # beside it: h * 0.1 and the key, the constant 0.1, and z
    assert tape.saved_bytes == 32 + (32 + 24) + 4 + 32
    text = str(tape)
    for part in ("linear(x1, x2, float32[2], activation='tanh')", "v3.kl", "test_explain.py:", "float32[4, 2]"):
        assert part in text


def test_a_kernel_of_a_call_that_failed_is_not_of_the_next() -> None:
    def forward(*arrays: np.ndarray, **attrs: object) -> None:
        OPS["iwae_bound"].forward(*arrays, **attrs)
        raise ValueError("too late")

    broken = Op("broken", "log_w", forward=forward, vjp=None, formula="", examples=lambda rng: [])
    try:
        with explain.recording(), pytest.raises(ShapeError, match="too late"):
            broken(leaf((3,)), axis=0)
        with explain.recording():
            y = ops.tanh(leaf((3,)))
        (entry,) = explain.tape(y).entries
        assert entry.note is not None and entry.note.kernels == ()
    finally:
        del OPS["broken"]


def test_tape_without_recording_and_after_backward() -> None:
    x, w = leaf((4, 3)), leaf((2, 3))
    loss = loss_of(x, w)
    tape = explain.tape(loss)
    assert all(e.note is None for e in tape.entries) and tape.entries[0].arguments == ("x1", "x2", "?")
    assert tape.entries[0].outputs == (((4, 2), np.float32),)
    loss.backward()
    assert explain.tape(loss).saved_bytes == 0 and "freed" in str(explain.tape(loss))
    with pytest.raises(GraphError, match="does not require a gradient"):
        explain.tape(gmcore.tensor(1.0))
    assert "x1" in str(explain.tape(x))


def test_backward_prints_the_program_that_runs() -> None:
    x, w = leaf((4, 3)), leaf((2, 3))
    loss = loss_of(x, w)
    program = explain.backward(loss)
    assert x.grad is None and w.grad is None
    loss.backward()  # the tape is still there
    ops_run = [s.node.op.name for s in program.statements]
    assert ops_run == ["add", "sum", "sum", "multiply", "gaussian_sample", "multiply", "linear"]
    lines = str(program).splitlines()
    assert lines[0] == "g_v7 = the gradient to start from"
    assert "g_v3.z, g_v3.z = [rule_0(g_v4, v3.z), rule_1(g_v4, v3.z)]  # float32[4, 2], float32[4, 2]; " \
           "ran multiply, multiply" in lines  # fmt: skip
    assert any(re.match(r"g_x1, g_x2, _ = rule_0\(g_v1, x1, x2, v1, 'tanh', needs\)", line) for line in lines)
    assert "# adds to g_v1" in lines


def test_dot() -> None:
    x, w = leaf((4, 3)), leaf((2, 3))
    text = explain.to_dot(loss_of(x, w))
    assert text.startswith("digraph") and text.endswith("}")
    assert '"x1" -> "v1";' in text and '"v3" -> "v4";' in text and text.count("label=") == 2 + 7


@pytest.mark.parametrize("name", sorted(OPS))
def test_show(name: str) -> None:
    """The formula and the source of each rule, for every op."""
    op = OPS[name]
    text = op.show()
    assert op.formula in text
    assert ("vjp for" in text) == bool(op._rules)
    for rule in op._rules:
        assert not isinstance(rule, str) or rule in text
    if hasattr(op.forward, "spec"):
        assert f"kernels: {op.forward.spec.name}: reference" in text


def test_show_has_the_source() -> None:
    assert "lambda g, y: g * y" in ops.multiply.show() and "def _linear_rule(" in OPS["linear"].show()


def test_passes() -> None:
    """Each backward pass of the block, whoever makes it; what its tape kept, though the pass has freed it since."""
    x, w = leaf((4, 3)), leaf((2, 3))
    with explain.passes() as passes:
        ops.sum(ops.tanh(x)).backward()
        gmcore.grad(ops.sum(x), x)  # adds to no leaf: no pass
        list(engine.step(loss_of(x, w)))
    assert _mode.get() is True and len(passes) == 2
    first, second = passes
    assert [e.node.op.name for e in first.tape.entries] == ["tanh", "sum"] and first.tape.saved_bytes == 4 * 3 * 4
    assert [s.node.op.name for s in first.program.statements] == ["sum", "tanh"]
    assert str(second.program) == str(explain.backward(loss_of(x, w)))
    assert second.tape.entries[0].note is not None and "freed" not in str(second.tape)
    ops.sum(x).backward()
    assert len(passes) == 2


def test_a_gradient_along_the_tape_of_a_pass_is_no_part_of_it() -> None:
    x, y = leaf((3,)), leaf((3,))
    with explain.passes() as passes:
        loss = ops.sum(x * y)
        loss.backward(retain_graph=True)
        gmcore.grad(loss, y)
    assert [s.targets for s in passes[0].program.statements] == [("g_v1",), ("g_x1", "g_x2")]


def test_backward_through_a_checkpoint() -> None:
    """What the recomputation runs belongs to the rule of the checkpoint; its own nodes are not on the tape."""
    x = leaf((3,))
    program = explain.backward(ops.sum(gmcore.checkpoint(lambda t: ops.tanh(t) * t, x)))
    (_, inner) = program.statements
    assert inner.node.op.name == "checkpoint" and inner.targets == ("g_x1",)
    assert inner.ran[:2] == ("tanh", "multiply") and len(inner.ran) > 4


def test_backward_leaves_retained_gradients_alone() -> None:
    x = leaf((3,))
    y = ops.tanh(x)
    y.retain_grad()
    loss = ops.sum(y * y)
    explain.backward(loss)
    assert y.grad is None and x.grad is None
    loss.backward(retain_graph=True)
    expected = y.grad
    explain.backward(loss)
    assert y.grad is expected


def test_memory_of_another_owner() -> None:
    """An array over a file's or another library's memory has an owner that is no array."""
    array = np.frombuffer(np.ones(6, np.float32).tobytes(), np.float32)
    tape = explain.tape(ops.sum(leaf((6,)) * array))
    assert tape.saved_bytes == array.nbytes
