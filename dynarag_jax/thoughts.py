"""How a model thinks before it lists: the markers of its family, or a plain cue.

A *thought* is free text that a policy writes before its list. Models that reason have markers for
it, which are taken from the tokenizer or its chat template; the prompt opens the thought, and the
model closes it. Others are asked for their thoughts in words, and a cue stands before the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MARKERS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, SmolLM3
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("◁think▷", "◁/think▷"),  # Kimi
)
CUES = {"instruct": "Needed passages:", "compact": "list :"}
"""What closes a thought by style of prompt, where the family has no markers."""


@dataclass(frozen=True)
class Thinking:
    """How thoughts are opened and closed.

    Attributes:
      opening: what the prompt ends with, before the thought; empty where a cue asks for it.
      closing: the text that ends a thought.
      behind: what stands between that and the list.
    """

    opening: str
    closing: str
    behind: str = ""

    @property
    def cued(self) -> bool:
        """Whether plain words close the thought, and no marker of the family."""
        return not self.opening


def find_thinking(tokenizer: Any, style: str) -> Thinking:
    """The markers of a tokenizer's family, or the cue of a style of prompts where it has none."""
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    template = tokenizer.chat_template
    texts = template.values() if isinstance(template, dict) else [template or ""]
    for opening, closing in _MARKERS:
        written = any(opening in text and closing in text for text in texts)
        if {opening, closing} <= known or written:
            return Thinking(f"{opening}\n", closing, "\n\n")
    return Thinking("", CUES[style])
