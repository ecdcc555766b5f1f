"""What Boltzmann machines share: chains that go on from step to step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gmcore import nn
from gmcore.errors import CheckpointError
from gmcore.models.generative import GenerativeModel


class BoltzmannModel(GenerativeModel):
    """A machine that may train with persistent chains (Tieleman, ICML 2008), which a checkpoint keeps.

    A subclass sets `chains`, their number, and `weight`.
    """

    chains: int
    weight: nn.Parameter
    _chains: np.ndarray | None = None
    """Visible states of the persistent chains, (chains, data_size); None until they are needed."""

    def training_state(self) -> dict[str, np.ndarray]:
        if self._chains is None:
            return {}
        return {"chains": self._chains.astype(np.uint8) if self.support == "bernoulli" else self._chains}

    def load_training_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        chains = arrays.get("chains")
        if chains is not None:
            if chains.shape != (self.chains, self.data_size):
                raise CheckpointError(f"persistent chains {chains.shape}, expected {(self.chains, self.data_size)}")
            chains = chains.astype(self.weight.dtype)
        self._chains = chains


__all__ = ["BoltzmannModel"]
