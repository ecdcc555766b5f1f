"""Losses as modules: `gmcore.ops` has the formulas, shapes and errors under the name of each.

The constructors take the functions' arguments, ``reduction="mean"`` among them, and PyTorch's deprecated
``size_average`` and ``reduce`` only as None. Weights of classes or elements are buffers.
"""

from gmcore import ops
from gmcore.nn.functional import Functional

_DEPRECATED = {"size_average": None, "reduce": None}


class BCELoss(Functional, function=ops.binary_cross_entropy, inputs=2, refused=_DEPRECATED):
    """Negative log-likelihood of targets in [0, 1] under Bernoulli probabilities: `ops.binary_cross_entropy`."""


class BCEWithLogitsLoss(Functional, function=ops.binary_cross_entropy_with_logits, inputs=2, refused=_DEPRECATED):
    """The same under logits: `ops.binary_cross_entropy_with_logits`."""


class CosineEmbeddingLoss(Functional, function=ops.cosine_embedding_loss, inputs=3, refused=_DEPRECATED):
    """1 - cos(x1, x2) where the target is 1, max(0, cos - margin) where it is -1: `ops.cosine_embedding_loss`."""


class CrossEntropyLoss(Functional, function=ops.cross_entropy, inputs=2, refused=_DEPRECATED):
    """Negative log-likelihood of classes under logits: `ops.cross_entropy`."""


class GaussianNLLLoss(Functional, function=ops.gaussian_nll_loss, inputs=3):
    """Negative log-density of N(input, var): `ops.gaussian_nll_loss`."""


class HingeEmbeddingLoss(Functional, function=ops.hinge_embedding_loss, inputs=2, refused=_DEPRECATED):
    """x where the target is 1, max(0, margin - x) where it is -1: `ops.hinge_embedding_loss`."""


class HuberLoss(Functional, function=ops.huber_loss, inputs=2):
    """Half the square of small errors, delta times large ones: `ops.huber_loss`."""


class KLDivLoss(Functional, function=ops.kl_div, inputs=2, refused=_DEPRECATED):
    """Divergence of log-probabilities from probabilities: `ops.kl_div`."""


class L1Loss(Functional, function=ops.l1_loss, inputs=2, refused=_DEPRECATED):
    """|input - target|: `ops.l1_loss`."""


class MarginRankingLoss(Functional, function=ops.margin_ranking_loss, inputs=3, refused=_DEPRECATED):
    """max(0, margin - target (input1 - input2)): `ops.margin_ranking_loss`."""


class MSELoss(Functional, function=ops.mse_loss, inputs=2, refused=_DEPRECATED):
    """(input - target)^2: `ops.mse_loss`."""


class MultiMarginLoss(Functional, function=ops.multi_margin_loss, inputs=2, refused=_DEPRECATED):
    """Hinge loss of a class against each other class: `ops.multi_margin_loss`."""


class NLLLoss(Functional, function=ops.nll_loss, inputs=2, refused=_DEPRECATED):
    """Negative log-likelihood of classes under log-probabilities: `ops.nll_loss`."""


class PoissonNLLLoss(Functional, function=ops.poisson_nll_loss, inputs=2, refused=_DEPRECATED):
    """Negative log-likelihood of counts under Poisson rates: `ops.poisson_nll_loss`."""


class SmoothL1Loss(Functional, function=ops.smooth_l1_loss, inputs=2, refused=_DEPRECATED):
    """`HuberLoss` divided by beta: `ops.smooth_l1_loss`."""
