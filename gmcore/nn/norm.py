"""Normalising layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gmcore import ops
from gmcore.device import put
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn.arguments import floating, positive_integer
from gmcore.nn.module import Module
from gmcore.nn.parameter import Parameter
from gmcore.op import user_line
from gmcore.tensor import Tensor, as_tensor


class _Affine(Module):
    """A layer that multiplies by a weight, at first ones, and adds a bias, at first zeros; each may be None."""

    weight: Parameter | None
    bias: Parameter | None

    def _make(self, shape: tuple[int, ...], weight: bool, bias: bool, device: str | None, dtype: Any) -> None:
        self.weight = Parameter(put(np.ones(shape, floating(dtype)), device)) if weight else None
        self.bias = Parameter(put(np.zeros(shape, floating(dtype)), device)) if bias else None

    def reset_parameters(self) -> None:
        """Weight 1 and bias 0."""
        if self.weight is not None:
            self.weight.copy_(np.ones(self.weight.shape, self.weight.dtype))
        if self.bias is not None:
            self.bias.copy_(np.zeros(self.bias.shape, self.bias.dtype))


def _trailing(name: str, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    shape = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    if not shape:
        raise ArgumentError(f"{name}: normalized_shape is empty; expected the lengths of the last axes")
    return tuple(positive_integer(name, "normalized_shape", n) for n in shape)


class LayerNorm(_Affine):
    """Each row standardised over its last axes, * weight + bias: `ops.layer_norm`.

    Parameters
    ----------
    normalized_shape : the lengths of the axes; an int for one.
    eps : added to the variance.
    elementwise_affine : whether there are a weight and a bias, of `normalized_shape`.
    bias : whether the bias is among them.
    device, dtype : ``"cpu"``; floating, float32 by default.

    Raises
    ------
    ArgumentError : lengths that are no positive integers.  ShapeError : (called) other last axes.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.normalized_shape = _trailing("LayerNorm", normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self._make(self.normalized_shape, elementwise_affine, elementwise_affine and bias, device, dtype)

    def forward(self, input: Any) -> Tensor:
        return ops.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class RMSNorm(_Affine):
    """Each row divided by its root mean square over the last axes, * weight: `ops.rms_norm`.

    Parameters
    ----------
    normalized_shape, elementwise_affine, device, dtype : as in `LayerNorm`.
    eps : added to the mean square; by default the distance from 1 to the next number of the input's dtype.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.normalized_shape = _trailing("RMSNorm", normalized_shape)
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self._make(self.normalized_shape, elementwise_affine, False, device, dtype)

    def forward(self, input: Any) -> Tensor:
        return ops.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(_Affine):
    """Channels standardised in groups, * weight + bias by channel: `ops.group_norm`.

    Parameters
    ----------
    num_groups, num_channels : num_channels is a multiple of num_groups.
    eps : added to the variance.
    affine : whether there are a weight and a bias, (num_channels,).
    device, dtype : as in `LayerNorm`.

    Raises
    ------
    ArgumentError : numbers that do not fit.  ShapeError : (called) an input that is not (N, num_channels, ...).
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.num_groups = positive_integer("GroupNorm", "num_groups", num_groups)
        self.num_channels = positive_integer("GroupNorm", "num_channels", num_channels)
        if num_channels % num_groups:
            raise ArgumentError(f"GroupNorm: num_channels={num_channels} is no multiple of num_groups={num_groups}")
        self.eps, self.affine = eps, affine
        self._make((self.num_channels,), affine, affine, device, dtype)

    def forward(self, input: Any) -> Tensor:
        x = _channels("GroupNorm", input, self.num_channels)
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}"


def _channels(name: str, input: Any, channels: int, forms: dict[int, str] | None = None) -> Tensor:
    """The input, with `channels` on its second axis, and as many axes as `forms` says, with what they are called."""
    x = as_tensor(input)
    if x.ndim < 2 or x.shape[1] != channels or (forms is not None and x.ndim not in forms):
        names = [", ..."] if forms is None else forms.values()
        form = " or ".join(f"(N, {channels}{name})" for name in names)
        raise ShapeError(f"{name}: expected an input {form}, got {x.shape} (called at {user_line()})")
    return x


class _BatchNorm(_Affine):
    forms: ClassVar[dict[int, str]]
    """Numbers of axes of the input, and what those after the channels are called."""

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.num_features = positive_integer(type(self).__name__, "num_features", num_features)
        self.eps, self.momentum, self.affine = eps, momentum, affine
        self.track_running_stats = track_running_stats
        self._make((self.num_features,), affine, affine, device, dtype)
        found = {
            "running_mean": np.zeros(self.num_features, floating(dtype)),
            "running_var": np.ones(self.num_features, floating(dtype)),
            "num_batches_tracked": np.zeros((), np.int64),
        }
        for name, start in found.items():
            self.register_buffer(name, Tensor(put(start, device)) if track_running_stats else None)

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1 and no batches."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.copy_(np.zeros(self.num_features, self.running_mean.dtype))
            self.running_var.copy_(np.ones(self.num_features, self.running_var.dtype))
            self.num_batches_tracked.copy_(np.zeros((), np.int64))

    def reset_parameters(self) -> None:
        self.reset_running_stats()
        super().reset_parameters()

    def forward(self, input: Any) -> Tensor:
        x = _channels(type(self).__name__, input, self.num_features, self.forms)
        training = self.training or self.running_mean is None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None and self.momentum is None:
            momentum = 1.0 / (self.num_batches_tracked.item() + 1)
        out = ops.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, momentum, self.eps
        )
        if self.training and self.num_batches_tracked is not None:  # not where the batch was refused
            self.num_batches_tracked.copy_(self.num_batches_tracked + 1)
        return out

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Each channel standardised over the batch, * weight + bias: `ops.batch_norm`.

    Parameters
    ----------
    num_features : number C of channels of the input, (N, C) or (N, C, L).
    eps : added to the variance.
    momentum : share by which running statistics move towards those of a batch; None: they are the plain average of
        all batches so far.
    affine : whether there are a weight and a bias, (C,).
    track_running_stats : whether there are running statistics, which take the batch's place in evaluation;
        without them the batch is used there too.
    device, dtype : as in `LayerNorm`.

    Attributes
    ----------
    running_mean, running_var : (C,), buffers that start at 0 and 1;  num_batches_tracked : (), int64, a buffer.

    Raises
    ------
    ArgumentError : num_features no positive integer.
    ShapeError : (called) another shape, or in training a single value per channel.
    """

    forms = {2: "", 3: ", L"}


class BatchNorm2d(_BatchNorm):
    """Each channel of planes (N, C, H, W) standardised over the batch and the planes. Parameters: see `BatchNorm1d`.

    Attributes
    ----------
    running_mean, running_var, num_batches_tracked : as in `BatchNorm1d`.

    Raises
    ------
    ArgumentError, ShapeError : as `BatchNorm1d`.
    """

    forms = {4: ", H, W"}
