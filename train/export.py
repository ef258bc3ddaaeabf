"""Export the trained model as a directory that transformers and vLLM load.

python -m train.export configs/quickstart.py --dtype bfloat16
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.exchange.decoders import load_decoder, save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.models import decoder
from dynarag_jax.stages import Export
from train.program import Context, main

CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# A dynamic reranker and generator

Trained with dynarag_jax (the method of arXiv 2505.07233). Given a question and numbered passages
it writes the ids of the passages to read, `[3], [1]` or `None`; given a question and passages it
writes the answer. Use the prompts of `dynarag_jax.prompts` unchanged.

Weights: {dtype}. Largest difference of its logits from the trained model's: {difference:.2e}.

The run that made it:

```json
{manifest}
```
"""


def difference(cfg_a, params_a, cfg_b, params_b) -> float:
    """Largest difference of two models' logits on a fixed random text."""
    tokens = np.random.default_rng(0).integers(0, cfg_a.vocab, (2, 64)).astype(np.int32)
    lengths = jnp.full((2,), 64, jnp.int32)
    out = []
    for cfg, params in ((cfg_a, params_a), (cfg_b, params_b)):
        hidden, _ = decoder.prefill(cfg, params, jnp.asarray(tokens), lengths)
        out.append(np.asarray(decoder.logits(cfg, params, hidden)))
    return float(np.abs(out[0] - out[1]).max())


def run(context: Context, stage: Export) -> None:
    """Write ``model/`` in the export's type, read it back, and say how far its logits are off."""
    context.require_one_process()
    source, target = context.path(stage.model), context.stage_directory / "model"
    context.manifest(inputs={"model": source})
    cfg, params = load_decoder(source)
    tokenizer = load_tokenizer(str(source))
    manifest = {
        "seed": context.run.seed,
        "stages": list(context.stages),
        "parameters": decoder.count_parameters(cfg),
        "jax": jax.__version__,
    }
    # The card says what the stored type costs, so the rounding is measured before it is written.
    rounded = jax.tree.map(lambda x: x.astype(stage.dtype).astype(x.dtype), params)
    cost = difference(cfg, params, cfg, rounded)
    card = CARD.format(dtype=stage.dtype, difference=cost, manifest=json.dumps(manifest, indent=2))
    save_decoder(target, cfg, params, tokenizer, dtype=stage.dtype, card=card, overwrite=True)
    context.log(f"{target}: {stage.dtype}, logits within {cost:.2e} of the trained model's")
    if stage.check:
        back, again = load_decoder(target)
        off = difference(cfg, rounded, back, again)
        if off:
            raise RuntimeError(f"{target}: read back, its logits differ by {off}")


if __name__ == "__main__":
    main("export", Export, run)
