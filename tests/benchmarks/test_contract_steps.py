"""The training steps that are compared with the peers, on a GPU: a kernel of ours runs whatever a kernel runs.

No kernel runs: what one is asked for is taken down, and its results are zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from benchmarks.workloads import STEPS
from gmkernels import KernelSpec, registry

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.slow
OF_CUPY = {"batch_norm", "batch_norm_backward"}
"""Have no kernel for GPUs: CuPy's functions compute their formulas there."""
ON_GPUS = [name for name, step in STEPS.items() if not step.of_tapes]


@pytest.mark.parametrize("name", ON_GPUS)
def test_kernels_of_ours_run_in_a_step(name: str) -> None:
    asked: dict[str, set[str]] = {}

    def note(
        spec: KernelSpec,
        plan: registry.Plan,
        inputs: Sequence[Any],
        outputs: Sequence[Any] | None,
        attrs: Mapping[str, Any],
    ) -> tuple[Any, ...]:
        assert plan.device is not None, f"{spec.name} runs on the CPU"
        asked.setdefault(spec.name, set()).add(plan.backend)
        return tuple([cupy.zeros(*of) for of in plan.outputs] if outputs is None else outputs)

    workload = STEPS[name].make(device="cuda")
    with registry.intercepted(note):
        workload.step(*workload.arguments)
    ours = {op: backends for op, backends in asked.items() if op not in OF_CUPY}
    assert ours and {op: b for op, b in ours.items() if not b <= {"triton", "cuda"}} == {}
