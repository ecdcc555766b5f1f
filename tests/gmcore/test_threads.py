"""Threads and forked children train as a program of one thread does, bit for bit."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

import gmcore
from gmcore import nn, ops, optim

ROOT = Path(gmcore.__file__).parents[1]


def train(seed: int, steps: int = 12) -> bytes:
    """A small autoencoder with noise from the default generator, by Adam: its parameters at the end."""
    gmcore.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 20))
    for p in model.parameters():
        p.copy_(rng.standard_normal(p.shape).astype(np.float32) * 0.2)
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    x = gmcore.tensor((rng.random((32, 20)) < 0.5).astype(np.float32))
    for _ in range(steps):
        optimizer.zero_grad()
        logits = gmcore.checkpoint(lambda x: model(x + 0.1 * ops.normal(x.shape)), x)
        loss = -ops.mean(ops.bernoulli_log_prob(logits, x))
        loss.backward()
        optimizer.step()
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())


def test_eight_threads_train_eight_models() -> None:
    expected = [train(seed) for seed in range(8)]
    assert len(set(expected)) == 8
    found: list[Any] = [None] * 8
    gate = threading.Barrier(8)

    def work(seed: int) -> None:
        gate.wait()
        found[seed] = train(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == expected


def test_the_child_of_a_process_that_has_trained_trains_on() -> None:
    """In an interpreter of its own: a fork of the tests' process would take their threads' locks along."""
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "kernels")!r}, {str(Path(__file__).parent)!r}]
from test_threads import train
first = train(0)
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, train(0)[:4096])
    os._exit(0)
child = os.read(read, 4096)
os.wait()
assert child == train(0)[:4096] == first[:4096], "the child trained otherwise"
print("equal", len(child))
"""
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "equal 2704\n", done.stderr
