"""Reranker and generator as Flax modules: two views of one decoder.

Both have the decoder's parameters and no others, so that what one trains the other has learned;
they differ in what they say of the branches. A reranker's branches are lists, and its distribution
is the grammar's; a generator's branches are answers over the whole vocabulary.
"""

from __future__ import annotations

import jax

from dynarag_jax.models.decoder import Decoder
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.policy.logprobs import TokenLogps, token_logps


class RerankerModule(Decoder):
    """The decoder as it chooses passages: log-probabilities of lists."""

    def __call__(  # type: ignore[override]
        self,
        trunk: jax.Array,
        lengths: jax.Array,
        lists: jax.Array,
        shown: jax.Array,
        grammar: Grammar,
    ) -> TokenLogps:
        """Log-probabilities [B, N, R] of lists, under the grammar and over the whole vocabulary.

        Args:
          trunk: prompts [B, P], right-padded; lengths: [B], at least 1.
          lists: tokens [B, N, R], right-padded.
          shown: [B], how many passages each prompt shows.
          grammar: of ``grammar.build_grammar``.
        """
        _, hidden = super().__call__(trunk, lengths, lists)
        params = self.parameters()
        return token_logps(self.cfg, params, hidden, lists, grammar, shown > 0, shown)


class Generator(Decoder):
    """The decoder as it answers: log-probabilities of answers."""

    def __call__(self, trunk: jax.Array, lengths: jax.Array, answers: jax.Array) -> TokenLogps:  # type: ignore[override]
        """Log-probabilities [B, N, R] of answers over the whole vocabulary.

        Args:
          trunk: prompts [B, P], right-padded; lengths: [B], at least 1.
          answers: tokens [B, N, R], right-padded.
        """
        _, hidden = super().__call__(trunk, lengths, answers)
        return token_logps(self.cfg, self.parameters(), hidden, answers)
