"""The model card of an exported checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
{base}---
# {title}

Written by dynarag_jax; transformers and vLLM load it. Weights: {dtype}.

What made it:

```json
{manifest}
```
"""


def model_card(source: str, dtype: str, manifest: Mapping[str, Any]) -> str:
    """README.md of a model made from ``source`` (a hub id is named as the base model).

    Args:
      manifest: what made it, shown as JSON.
    """
    hub = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    return _CARD.format(
        base=f"base_model: {source}\n" if hub else "",
        title=f"Converted from {source.rstrip('/').split('/')[-1]}",
        dtype=dtype,
        manifest=json.dumps(manifest, indent=2, ensure_ascii=False),
    )
