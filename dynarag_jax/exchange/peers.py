"""What transformers itself computes of a checkpoint, where it and PyTorch are installed.

The only place in the library that may import PyTorch, and only when it is asked to compare.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import jax
import numpy as np

from dynarag_jax.files import PathLike


def missing(adapters: PathLike = "") -> str:
    """Why transformers cannot be asked here; empty where it can."""
    if jax.process_count() > 1:
        return "several processes share the model"
    wanted = ("torch", "transformers", *(("peft",) if adapters else ()))
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    return f"{absent[0]} is not installed" if absent else ""


def transformers_logits(
    directory: Path, tokens: np.ndarray, adapters: PathLike = ""
) -> tuple[np.ndarray, str]:
    """Logits [B, T, V] in float32 of tokens [B, T], and the releases that computed them.

    Args:
      adapters: PEFT adapters to put on the model.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    names = ["transformers", "torch"]
    if adapters:
        import peft

        model = peft.PeftModel.from_pretrained(model, str(adapters))
        names.append("peft")
    with torch.no_grad():
        logits = model.eval()(torch.tensor(tokens)).logits.float().numpy()
    return logits, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
