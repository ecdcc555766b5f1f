"""Every peer makes gmcore's steps: the same losses, gradients or parameters from the same numbers."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import compare, peers
from benchmarks.workloads import STEPS

torch_steps = pytest.mark.parametrize("name", STEPS)
compiled_steps = pytest.mark.parametrize("name", peers.STEPS_OF["JAX"])


def agrees(contender, name, **sizes):
    workload = STEPS[name].make(**sizes)
    step, array = peers.make(contender, name, workload), peers.library(contender).array
    expected, found = compare.outcome(workload, workload), compare.outcome(step, workload, array)
    compare.check(name, contender, expected, found, workload.config)
    step()  # with noise of its own
    return expected, found


@pytest.fixture
def torch():
    """PyTorch, whose settings are put back."""
    torch = pytest.importorskip("torch", reason="PyTorch, a peer, is not installed")
    threads = torch.get_num_threads()
    yield torch
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@torch_steps
def test_torch(tiny, torch, name):
    agrees("PyTorch", name)


def test_torch_in_bfloat16(tiny, torch):
    both = agrees("PyTorch", "lstm-sequence", dtype="bfloat16")
    for gradient in (*both[0], *both[1]):
        np.testing.assert_array_equal(gradient.view(np.uint32) & 0xFFFF, 0, err_msg="not a number of bfloat16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of what it does itself
@compiled_steps
def test_compiled_torch(tiny, torch, name):
    agrees("torch.compile", name)


@pytest.mark.slow
@compiled_steps
def test_jax(tiny, name):
    pytest.importorskip("jax", reason="JAX, a peer, is not installed")
    agrees("JAX", name)


def test_sklearn(tiny):
    pytest.importorskip("sklearn", reason="scikit-learn, a peer, is not installed")
    agrees("scikit-learn", "cd-step")


def test_torch_has_our_threads_and_flushes_denormals_beside_kernels_of_ours(torch):
    """In a process of its own: threads that were started before keep the state they began with."""
    program = """
import torch
from benchmarks import compare, peers
from gmkernels import pool

peers.contenders = lambda name: ["PyTorch"]
compare.Case("iwae-bound")
assert torch.get_num_threads() == pool.get_num_threads()
assert peers.library("PyTorch").flushes_denormals()
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=peers.__file__.rpartition("/benchmarks/")[0])
