"""gmkernels: fused kernels for deep generative models. Arrays in, arrays out; no autograd.

Every operation is a spec (`registry.KernelSpec`) with kernels on several backends registered against it. Call
the thin wrappers (``gmkernels.gaussian_sample(mu, logvar, key=(seed, draw))``), or `run` with buffers of your own.
`explain(op, *arrays)` says which kernel a call runs and why; ``with use("reference"):`` prefers a backend.
Each wrapper takes ``backend=``: the name of the one to use, the cheapest that accepts if None.
"""

from gmkernels.activation import leaky_relu, leaky_relu_backward
from gmkernels.conv import conv2d, conv2d_backward_input, conv2d_backward_weight
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
from gmkernels.indexing import gather_rows, scatter_add_rows
from gmkernels.iwae import iwae_bound, iwae_bound_backward
from gmkernels.likelihood import (
    bernoulli_log_prob,
    bernoulli_log_prob_backward,
    linear_bernoulli_log_prob,
    linear_bernoulli_log_prob_backward,
    linear_bernoulli_residual,
    linear_bernoulli_residual_backward,
)
from gmkernels.linalg import solve_triangular
from gmkernels.norm import batch_norm, batch_norm_backward
from gmkernels.optim import adadelta, adagrad, adam, average, rmsprop, sgd, total_norm
from gmkernels.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d, plane_gather, plane_scatter
from gmkernels.recurrent import gru, gru_backward, lstm, lstm_backward, rnn, rnn_backward
from gmkernels.reduce import sum, sum_to
from gmkernels.registry import (
    Example,
    Explanation,
    KernelDtypeError,
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
from gmkernels.softmax import softmax_cross_entropy, softmax_cross_entropy_backward
from gmkernels.special import erf, erfc, erfcx, erfinv, gammainc, gammainc_grad_a, lgamma, ndtri, polygamma

__all__ = [
    "Cost",
    "Example",
    "Explanation",
    "KernelDtypeError",
    "KernelError",
    "KernelSpec",
    "Signature",
    "activation_backward",
    "adadelta",
    "adagrad",
    "adam",
    "annealed_importance_sampling",
    "average",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "bernoulli_log_prob",
    "bernoulli_log_prob_backward",
    "bernoulli_sample",
    "bernoulli_sample_logits",
    "boltzmann_sweep",
    "contrastive_divergence",
    "conv2d",
    "conv2d_backward_input",
    "conv2d_backward_weight",
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
    "gather_rows",
    "gibbs_chain",
    "gibbs_half_step",
    "gru",
    "gru_backward",
    "iwae_bound",
    "iwae_bound_backward",
    "key_array",
    "leaky_relu",
    "leaky_relu_backward",
    "lgamma",
    "linear",
    "linear_bernoulli_log_prob",
    "linear_bernoulli_log_prob_backward",
    "linear_bernoulli_residual",
    "linear_bernoulli_residual_backward",
    "lstm",
    "lstm_backward",
    "matmul",
    "max_pool2d",
    "ndtri",
    "normal",
    "plane_gather",
    "plane_scatter",
    "polygamma",
    "random_words",
    "register",
    "rmsprop",
    "rnn",
    "rnn_backward",
    "run",
    "scatter_add_rows",
    "select",
    "sgd",
    "softmax_cross_entropy",
    "softmax_cross_entropy_backward",
    "solve_triangular",
    "specs",
    "sum",
    "sum_to",
    "total_norm",
    "uniform",
    "unregister",
    "use",
]
