"""The README's Python examples run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_example(block, tmp_path):
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True, timeout=600)
