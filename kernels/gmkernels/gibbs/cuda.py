"""Gibbs sampling in CUDA C: what operands are made of, which launches a chain takes, and their arguments.

Products of small machines are a few dozen tiles, whose launches would take longer than they do: a chain of them is one
cooperative launch, whose blocks wait for each other after each half-step. Where half-steps have large tiles, enough to
keep a device busy, and where a device cannot hold a block on each multiprocessor, each half-step is a launch.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmkernels import launch
from gmkernels.arrays import Array, address, is_same
from gmkernels.cost import BARRIER, LAUNCH, nominal_gpu
from gmkernels.dense.cuda import ACROSS, ALONG, RUNS, TILES, Copy, Tile, tile_of
from gmkernels.gibbs import spec
from gmkernels.registry import KernelSpec

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_THREADS = 256  # of the kernels without tiles
_COPYING = 2048  # blocks of `make_operands`, for each matrix, at most

# ---------------------------------------------------------------------------------------------------------
# Structs of cuda.cu
# ---------------------------------------------------------------------------------------------------------

_MATRICES = np.dtype(
    [("source", "u8", (3,)), ("target", "u8", (3,)), ("row_stride", "i8", (3,)), ("column_stride", "i8", (3,)),
     ("pitch", "i8", (3,)), ("rows", "i4", (3,)), ("columns", "i4", (3,)), ("parts", "i4", (3,)),
     ("bytes", "i4", (3,))], align=True,
)  # fmt: skip
_LAYER = np.dtype(
    [("states", "u8"), ("states_across", "i8"), ("states_along", "i8"), ("state_part", "i8"), ("weight", "u8"),
     ("weight_across", "i8"), ("weight_along", "i8"), ("weight_part", "i8"), ("bias", "u8"), ("bias_stride", "i8"),
     ("base_bias", "u8"), ("sample", "u8"), ("pitch", "i8"), ("kept", "u8"), ("mean", "u8"), ("means_before", "u8"),
     ("means_after", "u8"), ("sums", "u8"), ("sums_after", "u8"), ("units", "i4"), ("inputs", "i4"),
     ("gaussian", "i4"), ("narrow", "i4"), ("state_parts", "i4")], align=True,
)  # fmt: skip
_PHASE = np.dtype(
    [("hidden", "u8"), ("visible", "u8"), ("hidden_pitch", "i8"), ("hidden_part", "i8"), ("visible_pitch", "i8"),
     ("visible_part", "i8"), ("rows", "i4"), ("visible_parts", "i4")], align=True,
)  # fmt: skip


_CODES = {"u8": "Q", "i8": "q", "i4": "i"}


@functools.cache
def _packer(kind: np.dtype[Any]) -> Callable[..., bytes]:
    """Packs the numbers of a struct: in a fifth of the time in which NumPy sets its fields."""
    assert kind.names is not None
    fields = [kind[name] for name in kind.names]
    codes = [math.prod(field.shape) * _CODES[field.base.str[1:]] for field in fields]
    return struct.Struct("@" + "".join(codes) + "0Q").pack


def _packed(kind: np.dtype[Any], *numbers: int) -> Any:
    return np.frombuffer(_packer(kind)(*numbers), kind)[0]


def _struct(kind: np.dtype[Any], **fields: Any) -> Any:
    """A struct of numbers, and of the addresses of arrays; what is not given or None is 0."""
    assert kind.names is not None and fields.keys() <= set(kind.names)
    found = map(fields.get, kind.names)
    return _packed(kind, *[0 if x is None else x if isinstance(x, int) else address(x) for x in found])


# ---------------------------------------------------------------------------------------------------------
# Operands
# ---------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """The types that a module is compiled for: that of operands, and of weights if it is another."""

    operand: str
    out: tuple[str, ...]

    @classmethod
    def of(cls, operand: np.dtype[Any], weight: Array) -> _Kind:
        return cls(operand.name, () if operand == weight.dtype else ("OUT=float",))

    def launch(self, name: str, grid: tuple[int, ...], threads: int, arguments: Arrays, tile: Tile | None = None,
               **options: Any) -> None:  # fmt: skip
        defines = (*self.out, *(tile.defines() if tile is not None else ()), *options.pop("defines", ()))
        launch.cuda("gibbs", name, self.operand, grid, (threads,), arguments, defines=defines, **options)


class _Operand(NamedTuple):
    """A matrix in the type of operands, in one part or two: strides in elements, also from a part to the next."""

    array: Array
    row_stride: int
    column_stride: int
    part: int = 0
    parts: int = 1


class _Operands:
    """Makes operands of up to three matrices: what need not be copied is used where it lies."""

    def __init__(self, kind: _Kind, operand: np.dtype[Any]) -> None:
        self.kind, self.dtype = kind, operand
        self._matrices: list[tuple[int, ...]] = []
        self._largest = 0

    def _copied(self, source: Array, room: Array, parts: int) -> _Operand:
        rows, columns = source.shape
        pitch = spec.pitch(columns)
        if source.size:
            row_stride, column_stride = (stride // source.itemsize for stride in source.strides)
            addresses, is_bytes = (address(source), address(room)), int(source.dtype == np.uint8)
            self._matrices.append((*addresses, row_stride, column_stride, pitch, rows, columns, parts, is_bytes))
            self._largest = max(self._largest, rows * pitch // 8)
        return _Operand(room, pitch, 1, rows * pitch if parts > 1 else 0, parts)

    def copied(self, states: Array, room: Array) -> _Operand:
        return self._copied(states, room, spec.state_parts(states, self.dtype))

    def states(self, states: Array, room: Array) -> _Operand:
        """Rows, neighbours in memory."""
        return self._in_place(states) or self.copied(states, room)

    def weight(self, weight: Array, room: Array) -> _Operand:
        """Rows or columns are neighbours in memory, whichever they are in the weight."""
        columns = weight.strides[0] == weight.itemsize and not weight.flags.c_contiguous
        turned = weight.T if columns else weight
        found = self._in_place(turned) or self._copied(turned, room, 2 if self.kind.out else 1)
        return found._replace(row_stride=1, column_stride=found.row_stride) if columns else found

    def _in_place(self, x: Array) -> _Operand | None:
        aligned = address(x) % 16 == 0 and x.strides[0] % 16 == 0 and x.strides[0] >= 0
        if x.dtype != self.dtype or x.strides[1] != x.itemsize or not aligned:
            return None
        return _Operand(x, x.strides[0] // x.itemsize, 1)

    def launch(self, counter: Array | None = None) -> None:
        """What must be copied, and the counter of a barrier set to 0."""
        if self._matrices or counter is not None:
            grid = max(1, min(_COPYING, -(-self._largest // _THREADS))), max(1, len(self._matrices))
            of_three = [*self._matrices, *[(0,) * 9] * (3 - len(self._matrices))]
            matrices = _packed(_MATRICES, *itertools.chain(*zip(*of_three, strict=True)))
            self.kind.launch("make_operands", grid, _THREADS, (matrices, counter))


# ---------------------------------------------------------------------------------------------------------
# Half-steps
# ---------------------------------------------------------------------------------------------------------


def _tile(operand: str, rows: int, units: int) -> Tile:
    """The largest are for operands of 16 bits: of float64 a row of them is more than a warp's, of float32 the registers
    do not suffice."""
    tiles = TILES[operand]
    return tile_of(tiles if tiles[128].k == 64 else {**tiles, 128: tiles[64]}, rows, units, 1)


def _tiles(tile: Tile, rows: int, units: int) -> int:
    return -(-rows // tile.m) * max(1, -(-units // tile.n))


def _shared(tile: Tile, operand: np.dtype[Any], kind: _Kind) -> int:
    """Bytes of shared memory of a block of `half_steps`: the steps of a product, and after them all of its sums."""
    states = Copy(RUNS, 4) if operand == np.float32 else Copy(ALONG, 16)
    steps = max(tile.shared(states, weight, operand.itemsize) for weight in (states, Copy(ACROSS, 16)))
    if kind.out and tile.m == 32:  # both parts of the weight at once
        steps += tile.stages * max(tile.n * (tile.k + 8), tile.k * (tile.n + 8)) * operand.itemsize
    return max(steps, tile.m * (tile.n + 8) * max(operand.itemsize, 4))


def _together(tile: Tile, shared: int, tiles: int) -> int:
    """Blocks of a cooperative launch for half-steps of so many tiles; 0: each half-step is a launch.

    How many the device holds may differ: it decides which block makes a tile, and not what the tile is.
    """
    if tile.m == 128:
        return 0
    return min(tiles, launch.held(tile.blocks, shared))


def _layer(states: _Operand, weight: _Operand, bias: Array, shape: tuple[int, int], units: str, **fields: Any) -> Any:
    """A layer of `shape` (units, inputs)."""
    kept = fields.get("kept")
    return _struct(
        _LAYER, states=states.array, states_across=states.row_stride, states_along=states.column_stride,
        state_part=states.part, state_parts=states.parts, weight=weight.array, weight_across=weight.row_stride,
        weight_along=weight.column_stride, weight_part=weight.part, bias=bias,
        bias_stride=bias.strides[0] // bias.itemsize, pitch=spec.pitch(shape[0]), units=shape[0], inputs=shape[1],
        gaussian=int(units == "gaussian"), narrow=int(kept is not None and kept.dtype == np.uint8), **fields,
    )  # fmt: skip


_NO_LAYER = np.zeros((), _LAYER)[()]


def _half_step(
    states: Array, weight: Array, bias: Array, key: Array | None, workspace: Arrays, units: str, **fields: Any
) -> tuple[_Kind, _Operand, Tile]:
    """One half-step, by itself."""
    room, weight_room = workspace
    operand = spec.operand_dtype(weight, states)
    kind = _Kind.of(operand, weight)
    operands = _Operands(kind, operand)
    given, taken = operands.states(states, room), operands.weight(weight, weight_room)
    operands.launch()
    rows, tile = len(states), _tile(operand.name, len(states), len(weight))
    layer = _layer(given, taken, bias, weight.shape, units, **fields)
    by_columns = taken.column_stride != 1
    layers = (_NO_LAYER, layer) if by_columns else (layer, _NO_LAYER)
    first = int(by_columns)
    kind.launch(
        "half_steps", (_tiles(tile, rows, len(weight)),), tile.threads,
        (*layers, key, None, None, None, rows, first, first + 1, 0), tile, shared=_shared(tile, operand, kind),
    )  # fmt: skip
    return kind, given, tile


def gibbs_half_step(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    states, weight, bias, key = inputs
    mean, sample = outputs
    if mean.size:
        if not key.flags.c_contiguous:
            key = key.copy()
        _half_step(states, weight, bias, key, workspace, attrs["units"], mean=mean, kept=sample)


class _Machine(NamedTuple):
    """A restricted machine whose chains run: its operands, and the tiles of its half-steps."""

    kind: _Kind
    operand: np.dtype[Any]
    visible_states: _Operand
    hidden_states: _Operand
    weight: _Operand
    tile: Tile

    @classmethod
    def of(cls, visible: Array, weight: Array, workspace: Arrays, operands: _Operands) -> _Machine:
        room, hidden_room, weight_room = workspace
        rows, pitch = len(visible), spec.pitch(len(weight))
        tile = _tile(operands.dtype.name, rows, max(weight.shape))
        hidden = _Operand(hidden_room, pitch, 1)
        taken = operands.weight(weight, weight_room)
        return cls(operands.kind, operands.dtype, operands.copied(visible, room), hidden, taken, tile)

    def hidden(self, bias: Array, shape: tuple[int, int], **fields: Any) -> Any:
        return _layer(self.visible_states, self.weight, bias, shape, "bernoulli", **fields)

    def visible(self, bias: Array, shape: tuple[int, int], units: str, **fields: Any) -> Any:
        turned = self.weight._replace(row_stride=1, column_stride=self.weight.row_stride)
        return _layer(self.hidden_states, turned, bias, shape[::-1], units, **fields)

    def run(
        self, hidden: Any, visible: Any, key: Array, counter: Array | None, rows: int, last: int, steps: int,
        betas: Array | None = None, log_weight: Array | None = None,
    ) -> None:  # fmt: skip
        """The half-steps before number `last`."""
        of_layers = [_tiles(self.tile, rows, int(layer["units"])) for layer in (hidden, visible)]
        shared = _shared(self.tile, self.operand, self.kind)
        together = _together(self.tile, shared, max(of_layers)) if last > 1 else 0
        spans = [(0, last, together)] if together else [(step, step + 1, of_layers[step % 2]) for step in range(last)]
        for first, end, blocks in spans:
            self.kind.launch(
                "half_steps", (blocks,), self.tile.threads,
                (hidden, visible, key, betas, log_weight, counter, rows, first, end, steps), self.tile,
                shared=shared, cooperative=together > 0,
            )  # fmt: skip


def gibbs_chain(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, weight, visible_bias, hidden_bias, key = inputs
    visible_out, visible_mean, hidden_out = outputs
    *rooms, counter = workspace
    if not len(visible) or not sum(weight.shape):
        return
    operand = spec.chain_operand_dtype(weight, attrs["units"])
    operands = _Operands(_Kind.of(operand, weight), operand)
    machine = _Machine.of(visible, weight, rooms, operands)
    operands.launch(counter)
    shape = weight.shape
    machine.run(
        machine.hidden(hidden_bias, shape, sample=rooms[1], kept=hidden_out),
        machine.visible(visible_bias, shape, attrs["units"], sample=rooms[0], kept=visible_out, mean=visible_mean),
        key, counter, len(visible), 2 * attrs["steps"], attrs["steps"],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Free energy
# ---------------------------------------------------------------------------------------------------------


def _row_blocks(rows: int) -> tuple[int, ...]:
    """Of kernels in which a warp has a row."""
    return (-(-rows * 32 // _THREADS),)


def free_energy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, weight, visible_bias, hidden_bias = inputs
    energy, hidden_mean = outputs
    *rooms, sums = workspace
    if not len(visible):
        return
    kind, states, tile = _half_step(
        visible, weight, hidden_bias, None, rooms, "bernoulli", mean=hidden_mean, sums=sums
    )  # fmt: skip
    rows, (hidden, units) = len(visible), weight.shape
    numbers = (rows, units, max(1, -(-hidden // tile.n)), int(attrs["units"] == "gaussian"))
    kind.launch(
        "energies", _row_blocks(rows), _THREADS,
        (states.array, np.int64(states.row_stride), visible_bias, sums, energy, *numbers),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Contrastive divergence
# ---------------------------------------------------------------------------------------------------------


def contrastive_divergence(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Where the chain starts at the data, the hidden means of the positive phase are those of its first step."""
    data, chain, weight, visible_bias, hidden_bias, key = inputs
    d_weight, d_visible_bias, d_hidden_bias, visible_out, loss = outputs
    *rooms, data_room, means, means_after, sums, sums_after, own, counter = workspace
    units, steps, shape = attrs["units"], attrs["steps"], weight.shape
    operand = spec.chain_operand_dtype(weight, units)
    operands = _Operands(_Kind.of(operand, weight), operand)
    machine, given = _Machine.of(chain, weight, rooms, operands), operands.states(data, data_room)
    operands.launch(counter)
    kind, tile = machine.kind, machine.tile

    before: dict[str, Array] = {"means_before": means, "sums": sums}
    if not is_same(chain, data):
        positive = machine._replace(visible_states=given)
        positive.run(positive.hidden(hidden_bias, shape, **before), _NO_LAYER, key, None, len(data), 1, 0)
        before = {}
    machine.run(
        machine.hidden(
            hidden_bias, shape, sample=rooms[1], means_after=means_after, sums_after=sums_after, **before
        ),
        machine.visible(visible_bias, shape, units, sample=rooms[0], kept=visible_out),
        key, counter, len(chain), 2 * steps + 1, steps,
    )  # fmt: skip

    hidden, visible = shape
    of_weight = _tile(operand.name, hidden, visible)
    tiles = -(-hidden // of_weight.m) * -(-visible // of_weight.n)
    end = machine.visible_states._replace(parts=1)
    phases = [
        _struct(
            _PHASE, hidden=h, hidden_pitch=spec.pitch(hidden), hidden_part=rows * spec.pitch(hidden), visible=v.array,
            visible_pitch=v.row_stride, visible_part=v.part, rows=rows, visible_parts=v.parts,
        )
        for h, v, rows in ((means, given, len(data)), (means_after, end, len(chain)))
    ]  # fmt: skip
    gaussian = int(units == "gaussian")
    across = Copy(ACROSS, 16)
    kind.launch(
        "statistics", (tiles + -(-visible // 32) + -(-hidden // 32),), of_weight.threads,
        (*phases, visible_bias, d_weight, d_visible_bias, d_hidden_bias, own, hidden, visible, gaussian, tiles),
        of_weight, shared=of_weight.shared(across, across, operand.itemsize), defines=("STATISTICS",),
    )  # fmt: skip
    kind.launch(
        "add_loss", (1,), _THREADS,
        (own, sums, sums_after, loss, visible, max(1, -(-hidden // tile.n)), len(data), len(chain)),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Annealed importance sampling
# ---------------------------------------------------------------------------------------------------------


def annealed_importance_sampling(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """The product of the hidden half-step serves the weights too: two products a temperature."""
    visible, weight, visible_bias, hidden_bias, base_bias, betas, key = inputs
    log_weight, visible_out = outputs
    *rooms, sums, own, counter = workspace
    rows, steps, units, shape = len(visible), len(betas) - 1, attrs["units"], weight.shape
    if not rows:
        return
    if not steps:
        log_weight.fill(0)
        visible_out[...] = visible
        return
    operand = spec.chain_operand_dtype(weight, units)
    operands = _Operands(_Kind.of(operand, weight), operand)
    machine = _Machine.of(visible, weight, rooms, operands)
    operands.launch(counter)
    states, tile = machine.visible_states, machine.tile
    numbers = (rows, shape[1], max(1, -(-shape[1] // tile.n)), int(units == "gaussian"))
    strides = np.int64(states.row_stride), np.int64(states.part)
    machine.kind.launch(
        "begin_annealing", _row_blocks(rows), _THREADS,
        (states.array, *strides, visible_bias, base_bias, own, log_weight, *numbers),
    )  # fmt: skip
    machine.run(
        machine.hidden(hidden_bias, shape, sample=rooms[1], sums=sums),
        machine.visible(visible_bias, shape, units, sample=rooms[0], kept=visible_out, base_bias=base_bias, sums=own),
        key, counter, rows, 2 * steps, steps, betas, log_weight,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# General Boltzmann machine
# ---------------------------------------------------------------------------------------------------------


def boltzmann_sweep(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A block takes a chain through all sweeps."""
    states, weight, bias, clamped, key = inputs
    (out,) = outputs
    (room,) = workspace
    if not states.size:
        return
    units = len(bias)
    narrow = states.dtype == np.uint8
    arrays = (None, states) if narrow else (states, None)
    ends = (None, out) if narrow else (out, None)
    launch.cuda(
        "gibbs", "sweep", weight.dtype, (len(states),), (_THREADS,),
        (*arrays, weight, bias, clamped, key, *ends, room if room.size else None, units, attrs["sweeps"]),
        shared=0 if room.size else 2 * units * room.itemsize,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# What `explain` says
# ---------------------------------------------------------------------------------------------------------


def _multiplied(operand: np.dtype[Any], weight: Array) -> str:
    if operand != weight.dtype:
        return "the weight in two parts of bfloat16, on tensor cores"
    return "multiply-adds in float32" if operand == np.float32 else f"{operand} on tensor cores"


def note(op: KernelSpec, *inputs: Array, **attrs: Any) -> str:
    """What a call multiplies and in which tiles, and how a chain is launched and why.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    if op is spec.BOLTZMANN_SWEEP:
        return "a block of threads for each chain"
    way = _way(op, inputs, attrs)
    multiplied, tile = _multiplied(way.operand, inputs[op.inputs.index("weight")]), f"{way.tile.m} by {way.tile.n}"
    if op is spec.GIBBS_HALF_STEP or op is spec.FREE_ENERGY:
        return f"{multiplied}; tiles of {tile}"
    count = sum(number for number, *_ in spec.half_steps(op, inputs, attrs))
    if way.together:
        how = f"one cooperative launch of {way.together} blocks for {count} half-steps of up to {way.tiles} tiles"
    elif way.tile.m == 128:
        how = f"{count} launches, as the {way.tiles} tiles of a half-step fill the device"
    else:
        how = f"{count} launches, as no block of a cooperative one fits on a multiprocessor of this device"
    return f"{multiplied}; {how}, of {tile} each"


# ---------------------------------------------------------------------------------------------------------
# What a call takes
# ---------------------------------------------------------------------------------------------------------

_EFFICIENCY = 0.5  # share of the nominal rates that tiles are taken to reach
_OTHERS = {"gibbs_half_step": 1, "free_energy": 2, "gibbs_chain": 1, "contrastive_divergence": 3,
           "annealed_importance_sampling": 2}  # fmt: skip
"""Launches of a call beside its half-steps."""


class _Way(NamedTuple):
    """How the half-steps of a call go: `tiles` of the larger layer, and blocks that are `together` in one launch."""

    operand: np.dtype[Any]
    tile: Tile
    tiles: int
    together: int


def _way(op: KernelSpec, inputs: Arrays, attrs: Attrs) -> _Way:
    states, weight = inputs[_states(op)], inputs[op.inputs.index("weight")]
    alone = op is spec.GIBBS_HALF_STEP or op is spec.FREE_ENERGY
    operand = spec.operand_dtype(weight, states) if alone else spec.chain_operand_dtype(weight, attrs["units"])
    rows, units = len(states), len(weight) if alone else max(weight.shape)
    tile = _tile(operand.name, rows, units)
    tiles, shared = _tiles(tile, rows, units), _shared(tile, operand, _Kind.of(operand, weight))
    return _Way(operand, tile, tiles, 0 if alone else _together(tile, shared, tiles))


def _states(op: KernelSpec) -> int:
    """The input that half-steps begin with."""
    return op.inputs.index("chain") if op is spec.CONTRASTIVE_DIVERGENCE else 0


def estimate(op: KernelSpec, *inputs: Array, **attrs: Any) -> float:
    """Seconds of a call by the numbers of `gmkernels.cost`, which were measured elsewhere: not of these kernels.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    way, weight, rows = _way(op, inputs, attrs), inputs[op.inputs.index("weight")], len(inputs[_states(op)])
    device = nominal_gpu(weight.data.device_id)
    seconds = (_OTHERS[op.name] + (way.together > 0)) * LAUNCH
    for count, units, given, kind in spec.half_steps(op, inputs, attrs):
        of_unit = spec.product_cost(
            weight, way.operand != weight.dtype, 0, 2 * given / _EFFICIENCY, spec.SLOTS[kind] / _EFFICIENCY
        )
        work = spec.half_step_seconds(device, rows, units, way.tile[:2], of_unit)
        seconds += count * (work + (BARRIER if way.together else LAUNCH))
    return seconds + device.floor(spec.statistics_cost(op, inputs, attrs)) / _EFFICIENCY
