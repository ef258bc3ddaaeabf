"""The model card of a written checkpoint: a page to read, and beside it the manifest as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynarag_jax.files import write_json

PAGE, MANIFEST = "README.md", "manifest.json"

_PAGE = """---
library_name: transformers
pipeline_tag: text-generation
{base}---
# {title}

{about}

Written by dynarag_jax; transformers and vLLM load it. Weights: {dtype}. {made}

## Use

With transformers:

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
{imports}
place = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(place)
model = AutoModelForCausalLM.from_pretrained(place, dtype="auto")
{prompt}
written = model.generate(torch.tensor([prompt]), max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(written[0, len(prompt):], skip_special_tokens=True))
```

With vLLM, after the same lines up to `prompt`:

```python
from vllm import LLM, SamplingParams

greedy = SamplingParams(temperature=0.0, max_tokens={tokens})
print(LLM(place).generate({{"prompt_token_ids": prompt}}, greedy)[0].outputs[0].text)
```
"""

_RERANK = """question = Question(
    "q1",
    "What is the capital of Switzerland?",
    passages=(
        Passage("a", "The Aare flows around the old town."),
        Passage("b", "Bern is the seat of the Swiss government."),
    ),
)
# The ids of the passages to read, best first; answer_messages(question, chosen, ...) asks for the
# answer from them.
prompt = render(tokenizer, rerank_messages(question, question.passages, "{style}"))
"""
_THINK = """question = Question(
    "q1",
    "What is the capital of Switzerland?",
    passages=(
        Passage("a", "The Aare flows around the old town."),
        Passage("b", "Bern is the seat of the Swiss government."),
    ),
)
# It thinks first. Behind what closes its thought stand the ids of the passages to read, best first.
thinking = find_thinking(tokenizer, "{style}")
messages = rerank_messages(question, question.passages, "{style}", thinking)
prompt = render(tokenizer, messages, thinking)
"""
_RERANK_IMPORTS = """
from dynarag_jax.prompts import render, rerank_messages
from dynarag_jax.records import Passage, Question
"""
_THINK_IMPORTS = f"{_RERANK_IMPORTS}from dynarag_jax.thoughts import find_thinking\n"
_PLAIN = """prompt = tokenizer("The capital of Switzerland is")["input_ids"]
"""


@dataclass(frozen=True)
class ModelCard:
    """What a model's directory says of itself.

    Attributes:
      page: README.md, in Markdown.
      manifest: what made the model, manifest.json; empty writes none.
    """

    page: str
    manifest: Mapping[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write the page and the manifest."""
        (directory / PAGE).write_text(self.page, encoding="utf-8")
        if self.manifest:
            write_json(directory / MANIFEST, dict(self.manifest))


def model_card(
    title: str,
    about: str,
    dtype: str,
    manifest: Mapping[str, Any],
    base: str = "",
    style: str = "",
    thought_tokens: int = 0,
) -> ModelCard:
    """The card of a model.

    Args:
      about: what it is, in Markdown.
      manifest: what made it.
      base: the hub id of the model it was made from; anything else is not named.
      style: of a reranker, the style of its prompts; empty shows how any model is used.
      thought_tokens: of a reranker that thinks before it lists, its longest thought.
    """
    asked = (_THINK if thought_tokens else _RERANK).format(style=style) if style else _PLAIN
    imports = _THINK_IMPORTS if thought_tokens else _RERANK_IMPORTS
    hub = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    stages = manifest.get("stages")
    made = f"`{MANIFEST}` says what made it" if manifest else ""
    made += f", stage by stage ({', '.join(stages)})." if stages else "." if made else ""
    page = _PAGE.format(
        base=f"base_model: {base}\n" if hub else "",
        title=title,
        about=about,
        dtype=dtype,
        made=made,
        imports=imports if style else "",
        prompt=asked,
        tokens=64 + thought_tokens,
    )
    return ModelCard(page, manifest)
