"""gmkernels: fused kernels for deep generative models. Arrays in, arrays out; no autograd.

Every operation is a spec (`registry.KernelSpec`) with kernels on several backends registered against it. Call
the thin wrappers (``gmkernels.gaussian_sample(mu, logvar, key=(seed, draw))``), or `run` with buffers of your own.
`explain(op, *arrays)` says which kernel a call runs and why; ``with use("reference"):`` prefers a backend.
Each wrapper takes ``backend=``: the name of the one to use, the cheapest that accepts if None.
"""

from gmkernels.cost import Cost
from gmkernels.dense import activation_backward, linear, matmul
from gmkernels.gibbs import (
    annealed_importance_sampling,
    boltzmann_sweep,
    contrastive_divergence,
    free_energy,
    gibbs_chain,
    gibbs_half_step,
)
from gmkernels.iwae import iwae_bound, iwae_bound_backward
from gmkernels.likelihood import bernoulli_log_prob, bernoulli_log_prob_backward
from gmkernels.linalg import solve_triangular
from gmkernels.optim import adadelta, adagrad, adam, average, rmsprop, sgd, total_norm
from gmkernels.registry import (
    Example,
    Explanation,
    KernelError,
    KernelSpec,
    Signature,
    entries,
    explain,
    register,
    run,
    select,
    specs,
    unregister,
    use,
)
from gmkernels.rng import key_array, normal, random_words, uniform
from gmkernels.sampling import (
    bernoulli_sample,
    bernoulli_sample_logits,
    dropout,
    gaussian_sample,
    gaussian_sample_backward,
)
from gmkernels.special import erf, erfc, erfcx, erfinv, gammainc, gammainc_grad_a, lgamma, ndtri, polygamma

__all__ = [
    "Cost",
    "Example",
    "Explanation",
    "KernelError",
    "KernelSpec",
    "Signature",
    "activation_backward",
    "adadelta",
    "adagrad",
    "adam",
    "annealed_importance_sampling",
    "average",
    "bernoulli_log_prob",
    "bernoulli_log_prob_backward",
    "bernoulli_sample",
    "bernoulli_sample_logits",
    "boltzmann_sweep",
    "contrastive_divergence",
    "dropout",
    "entries",
    "erf",
    "erfc",
    "erfcx",
    "erfinv",
    "explain",
    "free_energy",
    "gammainc",
    "gammainc_grad_a",
    "gaussian_sample",
    "gaussian_sample_backward",
    "gibbs_chain",
    "gibbs_half_step",
    "iwae_bound",
    "iwae_bound_backward",
    "key_array",
    "lgamma",
    "linear",
    "matmul",
    "ndtri",
    "normal",
    "polygamma",
    "random_words",
    "register",
    "rmsprop",
    "run",
    "select",
    "sgd",
    "solve_triangular",
    "specs",
    "total_norm",
    "uniform",
    "unregister",
    "use",
]
