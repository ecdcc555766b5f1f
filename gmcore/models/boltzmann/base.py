"""What Boltzmann machines share: chains that go on from step to step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gmcore import nn
from gmcore.errors import CheckpointError
from gmcore.models.generative import GenerativeModel
from gmcore.tensor import Tensor, tensor


class BoltzmannModel(GenerativeModel):
    """A machine that may train with persistent chains (Tieleman, ICML 2008), which a checkpoint keeps.

    A subclass sets `chains`, their number, and `weight`.
    """

    chains: int
    weight: nn.Parameter
    _chains: Tensor | None = None
    """Visible states of the persistent chains, (chains, data_size); None until they are needed."""

    def training_state(self) -> dict[str, np.ndarray]:
        if self._chains is None:
            return {}
        dtype = np.dtype(np.uint8) if self.support == "bernoulli" else self._chains.dtype
        return {"chains": self._chains.cpu().numpy().astype(dtype)}

    def load_training_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        chains = arrays.get("chains")
        if chains is not None:
            if chains.shape != (self.chains, self.data_size):
                raise CheckpointError(f"persistent chains {chains.shape}, expected {(self.chains, self.data_size)}")
        self._chains = None if chains is None else tensor(chains, dtype=self.weight.dtype, device=self.device)


__all__ = ["BoltzmannModel"]
