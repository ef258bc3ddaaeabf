"""Export the trained model as a directory that transformers and vLLM load.

python -m train.export configs/quickstart.py --dtype bfloat16
"""

from __future__ import annotations

from dataclasses import asdict

from dynarag_jax.exchange.convert import Convert, convert
from dynarag_jax.files import write_json
from dynarag_jax.stages import Export
from train.program import Context, main

ABOUT = """Trained with the method of DynamicRAG (arXiv 2505.07233). Given a question and numbered
passages it writes the ids of the passages to read, `[3], [1]` or `None`; given a question and
passages it writes the answer. Use the prompts of `dynarag_jax.prompts` unchanged."""


def run(context: Context, stage: Export) -> None:
    """Write ``model/`` in the export's type, read it back, and say how far it is off."""
    source, target = context.model(stage.model), context.stage_directory / "model"
    context.manifest(inputs={"model": source})
    differences = convert(
        Convert(
            source=str(source),
            target=str(target),
            dtype=stage.dtype,
            overwrite=True,
            check=stage.check,
            mesh=context.run.mesh,
        ),
        title="A dynamic reranker and generator",
        about=ABOUT,
        manifest={"seed": context.run.seed, "stages": list(context.stages)},
    )
    if differences is None:
        context.log(f"{target}: {stage.dtype}, not checked")
        return
    if context.primary:
        write_json(context.stage_directory / "differences.json", asdict(differences))
    context.log(
        f"{target}: {stage.dtype}; read back, tensors within "
        f"{max(differences.tensors.values()):.2e} of the trained model's, logits within "
        f"{differences.logits:.2e}"
    )


if __name__ == "__main__":
    main("export", Export, run)
