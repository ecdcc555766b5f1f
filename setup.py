"""Builds the distribution `gmcore`, which installs the import packages `gmcore` and `gmkernels`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "gmcore/__init__.py").read_text()).group(1)

APP = ["rich>=13", "matplotlib>=3.9", "scikit-learn>=1.5", "scipy>=1.13"]
TEST = [
    "pytest>=8",
    "pytest-benchmark>=4",
    "pytest-xdist>=3.3",
    "hypothesis>=6.100",
    "ruff>=0.5",
    "mypy>=1.10",
    "build>=1",
    "ml_dtypes>=0.5",
    # Triton's interpreter and compiler, and NVRTC, need no GPU. CuPy comes by cuda12 or cuda13: there may be one only.
    *(package + '; sys_platform == "linux"' for package in ("triton>=3.6", "nvidia-cuda-nvrtc>=13")),
    *APP,
]

setup(
    name="gmcore",
    version=VERSION,
    description="Fused kernels, a hand-written autograd core and deep generative models on it",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"gmkernels": "kernels/gmkernels", "gmcore": "gmcore"},
    packages=[
        *("gmcore" + dot for dot in ["", *("." + p for p in find_packages("gmcore"))]),
        *("gmkernels" + dot for dot in ["", *("." + p for p in find_packages("kernels/gmkernels"))]),
    ],
    package_data={"gmcore": ["py.typed"], "gmkernels": ["py.typed", "*.json", "*.cuh", "*/*.cu", "*/*.cuh"]},
    install_requires=["numpy>=2.3", "numba>=0.62", "safetensors>=0.5", "threadpoolctl>=3.5"],
    extras_require={
        "app": APP,
        "bfloat16": ["ml_dtypes>=0.5"],
        # ctk: the libraries of CUDA that CuPy loads, NVRTC among them, so that a driver is all that the machine needs.
        "cuda12": ["cupy-cuda12x[ctk]>=14", "triton>=3.6", "ml_dtypes>=0.5"],
        "cuda13": ["cupy-cuda13x[ctk]>=14", "triton>=3.6", "ml_dtypes>=0.5"],
        "mkl": ["mkl>=2024"],
        "mpi": ["mpi4py>=4"],
        "test": TEST,
        "peers": ["torch>=2.13", "jax>=0.10", "scikit-learn>=1.9"],
    },
    entry_points={"console_scripts": ["gmcore = gmcore.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Education",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
