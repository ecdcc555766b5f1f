"""Recurrent nets in CUDA C: which of the ways of ``cuda.cu`` a call goes, its launches, and the gradient of the weight.

`plan` decides by what a step takes each of the ways that the device has room for. All give the same bits, since the
parts of a sum follow from shapes alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gmkernels import cost, launch
from gmkernels.arrays import Array
from gmkernels.dense.cuda import matmul
from gmkernels.recurrent.spec import GPU_BYTES, GPU_ROWS, rounded, seconds_beside_steps, weight_products
from gmkernels.registry import KernelSpec

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_THREADS = 512  # of a block of the kernels that go through the steps, at most
_VECTORS = 512  # bytes that a warp reads of 8 columns at a step along the sum
_BLOCK_WEIGHTS = 192 << 10  # bytes of weights that a block of an H200 holds beside all else


class Device(NamedTuple):
    """What a device holds at once.

    Parameters
    ----------
    rates : nominal ones, and how many multiprocessors share them.
    shared : bytes of shared memory of a block.
    """

    rates: cost.Device
    shared: int


@functools.cache
def _device(number: int) -> Device:
    import cupy

    return Device(cost.nominal_gpu(number), cupy.cuda.Device(number).attributes["MaxSharedMemoryPerBlockOptin"])


def _current() -> Device:
    import cupy

    return _device(cupy.cuda.runtime.getDevice())


# ---------------------------------------------------------------------------------------------------------
# Which way
# ---------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """What a step multiplies.

    Parameters
    ----------
    cell : as ``cuda.cu`` calls it: RNN, LSTM, GRU_AFTER or GRU_BEFORE.
    backward : whether it is a step of the gradient.
    itemsize : of the arrays.
    size, batch : H and B.
    """

    cell: str
    backward: bool
    itemsize: int
    size: int
    batch: int

    @property
    def products(self) -> list[tuple[int, int]]:
        """Gates and length of the sums of each product; a GRU with the reset before it has two."""
        gates = {"RNN": 1, "LSTM": 4}.get(self.cell, 3)
        if self.cell == "GRU_BEFORE":
            return [(1, 2 * self.size), (1, self.size)] if self.backward else [(2, self.size), (1, self.size)]
        return [(1, gates * self.size)] if self.backward else [(gates, self.size)]

    @property
    def groups(self) -> int:
        """Groups of 8 numbers of the state of a warp, as in ``cuda.cu``."""
        single = self.cell == "LSTM" or (self.cell == "GRU_AFTER" and self.itemsize > 2)
        return 1 if single and not self.backward else 2

    @property
    def columns(self) -> int:
        """Columns of warps; one also of no units, for an estimate."""
        return max(1, -(-self.size // (8 * self.groups)))

    def padded(self, length: int) -> int:
        """Elements of a row of an operand."""
        return rounded(length, GPU_BYTES // self.itemsize)

    def k_steps(self, length: int) -> int:
        """Steps along a sum."""
        return self.padded(length) * self.itemsize // GPU_BYTES

    @property
    def most_warps(self) -> int:
        """Of a block: sums in float64 need the registers of twice the threads."""
        return 8 if self.itemsize == 8 else 16

    @property
    def parts(self) -> int:
        """Warps that share the sums of a column: a power of 2, so that each has some steps along them, 4 or more in a
        block that has all columns. Whether a block can have them follows from shapes alone here: bits depend on it.
        """
        longest = self.k_steps(self.products[0][1])
        if self.columns <= self.most_warps and self.weight_bytes(self.columns) <= _BLOCK_WEIGHTS:
            most = min(longest // 4, self.most_warps // self.columns)
        else:  # multiply-adds need the registers of twice the threads
            most = min(longest // 3, 16) if self.itemsize == 2 else min(longest // 2, 8)
        return 1 << (max(1, most).bit_length() - 1)

    def weight_bytes(self, columns: int) -> int:
        """Of the packed weight for so many columns of warps."""
        return columns * sum(self.groups * gates * self.k_steps(n) * _VECTORS for gates, n in self.products)

    def partial_bytes(self, columns: int, tiles: int, sequences: int) -> int:
        """Of shared memory for the parts of sums of so many columns of warps and tiles of sequences."""
        if self.parts == 1:
            return 0
        numbers = self.groups * max(gates for gates, _ in self.products) * tiles * sequences * 8
        return columns * self.parts * numbers * max(self.itemsize, 4)

    def operand_bytes(self, sequences: int) -> int:
        """Of shared memory for rows of the operands, each of them twice, an odd number of 64 bytes apart."""
        rows = [GPU_BYTES * (self.k_steps(n) + (self.k_steps(n) + 1) % 2) for _, n in self.products]
        return sequences * (sum(rows) if len(rows) == 2 else 2 * rows[0])

    def registers(self, kept: int, tiles: int, sequences: int) -> int:
        """About so many a thread needs that keeps so many steps of its weight, or loads 2 of it and the operand."""
        gates = self.products[0][0]
        halves = self.groups * gates
        sums = tiles * halves * (2 if self.itemsize == 2 else sequences) * max(1, self.itemsize // 4)
        numbers = -(-tiles * sequences // 4 * self.groups // self.parts)
        operand = 8 if self.itemsize == 2 else 4 * sequences  # of a tile, for multiply-adds of all its sequences
        words = 4 * halves * kept + tiles * operand // 2 if kept else 8 * halves + tiles * operand
        rest = {2: 40, 4: 48, 8: 56}[self.itemsize]
        return words + sums + numbers * (12 if self.backward else 3 * gates) + rest


class Plan(NamedTuple):
    """A way through the steps.

    Parameters
    ----------
    scope, weights : SCOPE and WEIGHTS of ``cuda.cu``.
    tiles, sequences : NT and SEQUENCES, how many sequences a warp has.
    columns : of warps in a block.
    kept : steps along the sum whose weight a warp keeps in registers.
    why : for `explain`.
    """

    scope: str
    weights: str
    tiles: int
    sequences: int
    columns: int
    kept: int
    why: str

    def grid(self, work: Work) -> tuple[int, int]:
        """Blocks for the sequences, of which there may be many, and for the columns."""
        return -(-work.batch // (self.sequences * self.tiles)), -(-work.columns // self.columns)

    def threads(self, work: Work) -> int:
        return 32 * self.columns * work.parts

    def shared(self, work: Work) -> int:
        weight = work.weight_bytes(self.columns) if self.weights == "IN_SHARED" else 0
        operand = work.operand_bytes(self.sequences) if self.scope == "BLOCK" else 0
        return weight + operand + work.partial_bytes(self.columns, self.tiles, self.sequences)

    def seconds(self, work: Work, rates: cost.Device) -> float:
        """Of a step, by the numbers of `gmkernels.cost`, which were measured elsewhere: not of these kernels.

        The weight of a block is read from its shared memory or the second-level cache, and so are the states of other
        blocks. One block does no more than a multiprocessor, so those of many sequences go round.
        """
        blocks, sequences = math.prod(self.grid(work)), self.tiles * self.sequences
        units, weight = 8 * self.columns * work.groups, work.weight_bytes(self.columns)
        states = sequences * work.itemsize * sum(length for _, length in work.products)
        of_block = cost.Cost(
            bytes=(weight if self.weights == "IN_GLOBAL" else 0) + (0 if self.scope == "BLOCK" else states),
            flops=2 * sequences * units * sum(gates * length for gates, length in work.products),
            slots=weight if self.weights == "IN_SHARED" else 0,
            itemsize=work.itemsize,
        )
        wait = cost.STEP + {"BLOCK": 0.0, "GRID": cost.BARRIER, "LAUNCH": cost.LAUNCH}[self.scope]
        rounds = -(-blocks // rates.multiprocessors) if self.scope == "BLOCK" else 1
        return rounds * len(work.products) * wait + rates.rounds(of_block, blocks)

    def defines(self, work: Work) -> tuple[str, ...]:
        values = {
            "CELL": work.cell,
            "SCOPE": self.scope,
            "WEIGHTS": self.weights,
            "NT": self.tiles,
            "SEQUENCES": self.sequences,
            "PARTS": work.parts,
            "KEPT": self.kept,
            "THREADS": 256 if self.threads(work) <= 256 else _THREADS,
        }
        direction = () if work.backward else ("FORWARD=1",)
        return (*(f"{name}={value}" for name, value in values.items()), *direction)


def _on_chip(work: Work, device: Device, plan: Plan) -> Plan | None:
    """The plan with the weight in registers, or in shared memory; None where it does not fit."""
    room = 255 if plan.threads(work) <= 256 else 128
    kept = -(-work.k_steps(work.products[0][1]) // work.parts)
    if len(work.products) == 1 and work.size > 32 and work.registers(kept, plan.tiles, plan.sequences) <= room:
        plan = plan._replace(weights="IN_REGISTERS", kept=kept)
        if plan.shared(work) <= device.shared:
            return plan
    plan = plan._replace(weights="IN_SHARED", kept=0)
    fits = plan.shared(work) <= device.shared and work.registers(0, plan.tiles, plan.sequences) <= room
    return plan if fits else None


def _block(work: Work, device: Device) -> Plan | str:
    """By one block for 4 sequences, or 8 where there are many; or why not."""
    if work.columns > work.most_warps:
        return f"{work.most_warps} warps of a block make less than {work.size} hidden units"
    sequences = 4 if work.batch <= 4 * device.rates.multiprocessors else 8
    plan = _on_chip(work, device, Plan("BLOCK", "", 1, sequences, work.columns, 0, ""))
    if plan is None or work.columns * work.parts > work.most_warps:
        return f"a block holds less than {work.weight_bytes(work.columns) >> 10} KiB of weights"
    where = "registers" if plan.kept else "shared memory"
    return plan._replace(why=f"one kernel for all steps, a block for {sequences} sequences, weights in its {where}")


def _tiles(work: Work) -> int:
    """Tiles of 8 sequences of a warp: as many as there are, up to those that there are registers for."""
    room = 255 if work.parts <= 8 else 128
    most = min({2: 8, 4: 2, 8: 1}[work.itemsize], max(1, 2 * work.parts // work.groups))  # 4 numbers of a thread
    tiles = 1
    while tiles < most and 8 * tiles < work.batch and work.registers(0, 2 * tiles, 8) <= room:
        tiles *= 2
    return tiles


def _grid(work: Work, device: Device) -> Plan | str:
    """By blocks that share the weights and wait for each other, or why not."""
    tiles = _tiles(work)
    for columns in range(1, work.most_warps // work.parts + 1):
        plan = _on_chip(work, device, Plan("GRID", "", tiles, 8, columns, 0, ""))
        if plan is None:
            break
        blocks = math.prod(plan.grid(work))
        if blocks <= device.rates.multiprocessors:
            where = "registers" if plan.kept else "shared memory"
            how = f"one kernel for all steps, {blocks} blocks that wait for each other"
            return plan._replace(why=f"{how}, weights in their {where}")
    total = (work.weight_bytes(work.columns) >> 10) * -(-work.batch // (8 * tiles))
    return f"{device.rates.multiprocessors} multiprocessors hold less than {total} KiB of weights"


def _launch(work: Work, device: Device) -> Plan:
    """By a launch for each step."""
    columns = max(1, min(work.columns, 8 // work.parts))
    return Plan("LAUNCH", "IN_GLOBAL", _tiles(work), 8, columns, 0, "a launch for each step")


WAYS = (_block, _grid, _launch)


def plan(work: Work, device: Device) -> Plan:
    """The way whose steps take the least time, of those that the call can go.

    Parameters
    ----------
    work : of a step.
    device : what runs it.
    """
    return _fastest(WAYS, work, device)


@functools.cache
def _fastest(ways: tuple[Callable[[Work, Device], Plan | str], ...], work: Work, device: Device) -> Plan:
    tried = [way(work, device) for way in ways]
    found = [(each.seconds(work, device.rates), each) for each in tried if isinstance(each, Plan)]
    found.sort(key=lambda each: each[0])
    told = [f"{each.why}, {seconds * 1e6:.1f} us a step" for seconds, each in found]
    return found[0][1]._replace(why="; ".join([*told, *(each for each in tried if isinstance(each, str))]))


def _work(op: str, h0: Array, attrs: Attrs) -> Work:
    cell = op.removesuffix("_backward").upper()
    if cell == "GRU":
        cell = "GRU_AFTER" if attrs["reset_after"] else "GRU_BEFORE"
    return Work(cell, op.endswith("_backward"), h0.itemsize, h0.shape[1], h0.shape[0])


def note(op: KernelSpec, *inputs: Array, **attrs: Any) -> str:
    """Which way a call goes and why, for `explain`.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    h0 = inputs[op.inputs.index("h0")]
    return plan(_work(op.name, h0, attrs), _device(h0.data.device_id)).why


def estimate(op: KernelSpec, *inputs: Array, **attrs: Any) -> float:
    """Seconds of a call: of its steps, what else it launches, and what moves and multiplies besides.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    h0, steps = inputs[op.inputs.index("h0")], inputs[op.inputs.index("batch_sizes")].size
    work, device = _work(op.name, h0, attrs), _device(h0.data.device_id)
    launches = 3 + 3 * work.backward  # before the steps, and of the weight's gradient
    seconds = steps * plan(work, device).seconds(work, device.rates) + launches * cost.LAUNCH
    return seconds + seconds_beside_steps(op, inputs, attrs)


# ---------------------------------------------------------------------------------------------------------
# Launches
# ---------------------------------------------------------------------------------------------------------


def _run(family_kernel: str, dtype: str, count: int, arguments: Arrays, threads: int = 256) -> None:
    launch.cuda("recurrent", family_kernel, dtype, (-(-count // threads),), (threads,), arguments)


def _prepare(
    work: Work, dtype: str, batch_sizes: Array, rows: int, weight: Array, first: Array | None, workspace: Arrays
) -> None:
    """Offsets of the steps, the first operand, and the packed weight."""
    offsets, _, exchange, panels, barrier, *_ = workspace
    size, steps = work.size, batch_sizes.size
    launch.cuda(
        "recurrent", "find_offsets", dtype, (1,), (1024,), (batch_sizes, offsets, barrier, steps, work.batch, rows)
    )
    padded = work.padded(work.products[0][1])
    _run("fill", dtype, exchange.size, (first, exchange, exchange.size, work.batch, size, padded))
    packed = row = 0
    for gates, length in work.products:
        halves, k_steps = work.groups * gates, work.k_steps(length)
        count = work.columns * k_steps * halves * _VECTORS // work.itemsize
        strides = (0, 1, size) if work.backward else (size * size, size, 1)
        arguments = (weight, row * size, panels, packed, count, size, length, k_steps, halves, gates, *strides)
        _run("pack_weight", dtype, count, arguments)
        packed += count
        row += length if work.backward else gates * size


def _launches(way: Plan, work: Work, steps: int, after: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, half) of each launch that goes through the steps and `after` more of the whole first half."""
    if way.scope != "LAUNCH":
        yield 0, steps + after, 0
        return
    for step in range(max(steps + after, 1)):
        for half in range(len(work.products) if step < steps else 1):
            yield step, min(step + 1, steps + after), half


def _go(
    kernel: str, way: Plan, work: Work, dtype: str, arguments: Arrays, steps: int, after: int, flags: Arrays
) -> None:
    for begin, end, half in _launches(way, work, steps, after):
        launch.cuda(
            "recurrent", kernel, dtype, way.grid(work), (way.threads(work),),
            (*arguments, work.columns, way.columns, steps, begin, end, half, *flags),
            shared=way.shared(work), defines=way.defines(work), cooperative=way.scope == "GRID",
        )  # fmt: skip


def _flags(attrs: Attrs) -> tuple[int, int]:
    return int(attrs["reverse"]), int(attrs.get("nonlinearity") == "relu")


def _forward(
    op: str, attrs: Attrs, x: Array, h0: Array, c0: Array | None, weight: Array, bias_n: Array | None,
    batch_sizes: Array, workspace: Arrays, h: Array, h_n: Array, c_n: Array | None, c: Array | None,
    gates: Array | None, reset: Array | None,
) -> None:  # fmt: skip
    if not h0.size:
        return
    work, dtype, steps = _work(op, h0, attrs), x.dtype.name, batch_sizes.size
    offsets, states, exchange, panels, barrier = workspace
    _prepare(work, dtype, batch_sizes, len(x), weight, h0, workspace)
    rows, padded = rounded(work.batch, GPU_ROWS), work.padded(work.size)
    arguments = (
        x, h0, c0, bias_n, panels, offsets, exchange, states, barrier, h, h_n, c_n, c, gates, reset, work.batch,
        work.size, rows, padded,
    )  # fmt: skip
    _go("forward", plan(work, _current()), work, dtype, arguments, steps, 0, _flags(attrs))


def rnn(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, batch_sizes = inputs
    h, h_n = outputs
    _forward("rnn", attrs, x, h0, None, weight, None, batch_sizes, workspace, h, h_n, None, None, None, None)


def lstm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, c0, weight, batch_sizes = inputs
    h, h_n, c_n, c, gates = outputs
    _forward("lstm", attrs, x, h0, c0, weight, None, batch_sizes, workspace, h, h_n, c_n, c, gates, None)


def gru(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, bias_n, batch_sizes = inputs
    h, h_n, gates, reset = outputs
    _forward("gru", attrs, x, h0, None, weight, bias_n, batch_sizes, workspace, h, h_n, None, None, gates, reset)


def _backward(
    op: str, attrs: Attrs, g_h: Array, g_hn: Array, g_cn: Array | None, weight: Array, h0: Array, c0: Array | None,
    h: Array, c: Array | None, gates: Array | None, reset: Array | None, batch_sizes: Array, workspace: Arrays,
    d_x: Array, d_h0: Array, d_c0: Array | None, d_weight: Array,
) -> None:  # fmt: skip
    work, dtype, steps = _work(op, h0, attrs), h.dtype.name, batch_sizes.size
    if not work.size:
        return
    offsets, states, exchange, panels, barrier, before, factors, parts = workspace
    reverse, relu = _flags(attrs)
    if h0.size:
        _prepare(work, dtype, batch_sizes, len(h), weight, None, workspace)
        launch.cuda(
            "recurrent", "gather_before", dtype, (steps,), (256,),
            (h, h0, offsets, before, steps, work.size, reverse),
        )  # fmt: skip
        lengths = [work.padded(n) for _, n in work.products]
        arguments = (
            g_h, g_hn, g_cn, c0, h, c, gates, reset, before, panels, offsets, exchange, states, barrier, d_x, d_h0,
            d_c0, factors, work.batch, work.size, rounded(work.batch, GPU_ROWS), lengths[0], sum(lengths[1:]),
        )  # fmt: skip
        _go("backward", plan(work, _current()), work, dtype, arguments, steps, 1, (reverse, relu))
    first = 0
    gates_of_weight = weight_products(len(weight) // work.size, work.size)
    for i, rows in enumerate(gates_of_weight):
        d = d_x[:, first : first + rows] if i == 0 else factors
        of = reset if i == 1 and work.cell == "GRU_BEFORE" else before
        matmul((d.T, of), (d_weight[first : first + rows],), (parts,), {})
        first += rows


def rnn_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, batch_sizes = inputs
    d_x, d_h0, d_weight = outputs
    _backward(
        "rnn_backward", attrs, g_h, g_hn, None, weight, h0, None, h, None, None, None, batch_sizes, workspace, d_x,
        d_h0, None, d_weight,
    )  # fmt: skip


def lstm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, batch_sizes = inputs
    d_x, d_h0, d_c0, d_weight = outputs
    _backward(
        "lstm_backward", attrs, g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, None, batch_sizes, workspace, d_x, d_h0,
        d_c0, d_weight,
    )  # fmt: skip


def gru_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, gates, reset, batch_sizes = inputs
    d_x, d_h0, d_weight, d_bias_n = outputs
    _backward(
        "gru_backward", attrs, g_h, g_hn, None, weight, h0, None, h, None, gates, reset, batch_sizes, workspace, d_x,
        d_h0, None, d_weight,
    )  # fmt: skip
    states, (batch, size) = workspace[1], h0.shape
    _run("add_sequences", h.dtype.name, size, (states, 2 * batch * size, d_bias_n, batch, size), 128)
