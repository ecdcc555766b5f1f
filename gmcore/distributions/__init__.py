"""Probability distributions: `torch.distributions`' names, shapes and argument order."""

from gmcore.distributions import constraints
from gmcore.distributions.bernoulli import Bernoulli
from gmcore.distributions.categorical import Categorical, OneHotCategorical, OneHotCategoricalStraightThrough
from gmcore.distributions.count import Binomial, Geometric, NegativeBinomial, Poisson
from gmcore.distributions.dirichlet import Beta, Dirichlet
from gmcore.distributions.distribution import Distribution
from gmcore.distributions.gamma import Chi2, Exponential, Gamma, InverseGamma, StudentT
from gmcore.distributions.half_normal import HalfNormal
from gmcore.distributions.independent import Independent
from gmcore.distributions.kl import kl_divergence, register_kl
from gmcore.distributions.location_scale import Cauchy, Gumbel, Laplace, LocationScale, Logistic
from gmcore.distributions.mixture import MixtureSameFamily
from gmcore.distributions.multinomial import Multinomial
from gmcore.distributions.multivariate_normal import LowRankMultivariateNormal, MultivariateNormal
from gmcore.distributions.normal import Normal
from gmcore.distributions.relaxed import (
    ExpRelaxedCategorical,
    LogitRelaxedBernoulli,
    RelaxedBernoulli,
    RelaxedOneHotCategorical,
    gumbel_softmax,
)
from gmcore.distributions.transformed import LogNormal, TransformedDistribution
from gmcore.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    SigmoidTransform,
    SoftplusTransform,
    StickBreakingTransform,
    TanhTransform,
    Transform,
)
from gmcore.distributions.uniform import Uniform

__all__ = [
    "AffineTransform",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Chi2",
    "ComposeTransform",
    "Dirichlet",
    "Distribution",
    "ExpRelaxedCategorical",
    "ExpTransform",
    "Exponential",
    "Gamma",
    "Geometric",
    "Gumbel",
    "HalfNormal",
    "Independent",
    "InverseGamma",
    "Laplace",
    "LocationScale",
    "LogNormal",
    "Logistic",
    "LogitRelaxedBernoulli",
    "LowRankMultivariateNormal",
    "MixtureSameFamily",
    "Multinomial",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "Poisson",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "SigmoidTransform",
    "SoftplusTransform",
    "StickBreakingTransform",
    "StudentT",
    "TanhTransform",
    "Transform",
    "TransformedDistribution",
    "Uniform",
    "constraints",
    "gumbel_softmax",
    "kl_divergence",
    "register_kl",
]
