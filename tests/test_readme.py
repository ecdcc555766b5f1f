"""The README's Python examples run as they stand; those for a GPU on an emulated one, where there is none."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cupy_stand_in import has_gpu

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```python ?(gpu)?\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
EMULATED = f"import sys; sys.path.append({str(ROOT)!r}); from tests.support.cupy_stand_in import install; install()\n"


@pytest.mark.slow
@pytest.mark.parametrize("device, block", BLOCKS)
def test_example(device, block, tmp_path):
    block = EMULATED + block if device and not has_gpu() else block
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=600)
