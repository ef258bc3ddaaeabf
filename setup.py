"""Packaging: the one list of what is needed. Exact versions are in requirements/constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

CORE = [
    "jax>=0.10.1,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "transformers>=5.20,<6",
    "tokenizers>=0.23,<0.24",
    "safetensors>=0.8,<1",
    "jinja2>=3.1,<4",  # chat templates
    "numpy>=2.1,<3",
    "rouge-score>=0.1.2,<0.2",
    "tyro>=1.0.17,<1.1",
    "tqdm>=4.66,<5",
]

# ScaNN has wheels for Linux and up to Python 3.13; exact search in JAX stands in elsewhere.
# BM25 with its stemmer beside it.
RETRIEVAL = [
    "scann>=1.4.2,<1.5; sys_platform == 'linux' and python_version < '3.14'",
    "bm25s>=0.3.9,<0.4",
    "PyStemmer>=3,<4",
]
LISTWISE = ["rax>=0.4,<0.5"]
# Where metrics are watched beside metrics.jsonl.
WATCH = ["tensorboard>=2.19,<3", "wandb>=0.19"]
DATA = [
    "tensorflow-datasets>=4.9.10,<4.10",
    "array-record>=0.8,<0.9; sys_platform == 'linux'",
    "pyarrow>=20",  # Parquet
    "zstandard>=0.23,<1",
]
# Models as GGUF files, in and out.
GGUF = ["gguf>=0.19,<0.20"]
# The server: HTTP, its requests checked, its counts for Prometheus.
SERVE = [
    "starlette>=1.10,<2",
    "uvicorn>=0.54,<1",
    "h11>=0.16,<1",
    "pydantic>=2.14,<3",
    "prometheus-client>=0.26,<1",
]
# Rerankers in RAG frameworks, each by itself; PyTerrier's own retrievers need Java besides.
LANGCHAIN = ["langchain-core>=1.8,<2"]
LLAMAINDEX = ["llama-index-core>=0.14.25,<0.15"]
HAYSTACK = ["haystack-ai>=3.4,<4"]
PYTERRIER = ["pyterrier>=1.1,<2"]
# Encoder policies as ONNX files, out; onnxruntime quantizes them, and runs them in the tests.
ONNX = ["onnx>=1.20,<2", "onnxruntime>=1.23,<2"]
# Peers that the benchmarks run beside us.
BENCH = ["faiss-cpu>=1.12", "sentence-transformers>=5", "torch>=2.9"]
TEST = [
    "zstandard>=0.23,<1",
    "pytest>=9,<10",
    "pytest-xdist>=3.8,<4",
    "hypothesis>=6.100,<7",
    "import-linter>=2.17,<3",
    "ruff==0.17.6",
    "pyright[nodejs]==1.1.414",
    "torch>=2.9",
    "peft>=0.21,<0.22",
    "trl>=1.16,<1.17",
    "torchmetrics>=1.9,<2",
    "pytrec-eval-terrier>=0.5.10,<0.6",
    "bert-score>=0.3.13,<0.4",
    "rouge>=1.0.1,<1.1",
    "scipy>=1.14,<2",
]
# The site of the documentation; ruff formats its signatures.
DOCS = ["mkdocs-material>=9.7,<10", "mkdocstrings-python>=2,<3", "ruff==0.17.6"]

README = HERE / "README.md"

setup(
    name="dynarag_jax",
    version=re.findall(r'__version__ = "(.+)"', (HERE / "dynarag_jax/__init__.py").read_text())[0],
    description="DynamicRAG in JAX: rerankers that decide how many passages to read",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["dynarag_jax", "dynarag_jax.*"]),
    package_data={"dynarag_jax.report": ["templates/*"], "dynarag_jax.explore": ["page/*"]},
    install_requires=CORE,
    extras_require={
        "cuda": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        # The TPUs' compiler alone, of the version that this JAX names.
        "compile": ["jax[tpu]"],
        "retrieval": RETRIEVAL,
        "listwise": LISTWISE,
        "data": DATA,
        "watch": WATCH,
        "gguf": GGUF,
        "serve": SERVE,
        "langchain": LANGCHAIN,
        "llamaindex": LLAMAINDEX,
        "haystack": HAYSTACK,
        "pyterrier": PYTERRIER,
        "onnx": ONNX,
        "mauve": ["mauve-text"],  # needs PyTorch and GPT-2; nothing else does
        "all": RETRIEVAL + LISTWISE + DATA + GGUF + ONNX + SERVE,
        "test": TEST,
        "bench": BENCH,
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["dynarag = dynarag_jax.launch.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
