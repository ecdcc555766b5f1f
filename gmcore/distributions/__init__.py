"""Probability distributions: `torch.distributions`' names, shapes and argument order."""

from gmcore.distributions.bernoulli import Bernoulli
from gmcore.distributions.distribution import Distribution
from gmcore.distributions.kl import kl_divergence, register_kl
from gmcore.distributions.normal import Normal

__all__ = ["Bernoulli", "Distribution", "Normal", "kl_divergence", "register_kl"]
