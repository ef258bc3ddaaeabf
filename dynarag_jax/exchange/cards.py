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

{about}

Written by dynarag_jax; transformers and vLLM load it. Weights: {dtype}.

What made it:

```json
{manifest}
```
"""


def model_card(
    title: str, about: str, dtype: str, manifest: Mapping[str, Any], base: str = ""
) -> str:
    """README.md of a model.

    Args:
      about: what it is, in Markdown.
      manifest: what made it, shown as JSON.
      base: the hub id of the model it was made from; anything else is not named.
    """
    hub = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    return _CARD.format(
        base=f"base_model: {base}\n" if hub else "",
        title=title,
        about=about,
        dtype=dtype,
        manifest=json.dumps(manifest, indent=2, ensure_ascii=False),
    )
