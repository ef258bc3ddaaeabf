"""Fields of Hugging Face's JSON files: each used, known to change nothing, or refused by name.

A reader takes what it needs from ``TrackedFields``, which remembers what it was asked for.
``refuse_rest`` then looks at what nobody asked for: a field that is not in the tables below may
mean another computation, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dynarag_jax.errors import InputError

Idle = Mapping[str, tuple[Any, ...] | Callable[[Any], bool] | None]
"""Fields that change nothing: with any value (None), with one of some, or where a test holds."""

_SHOWN = 5

# What a number must be, by its name in any of the files.
_SIZES = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "intermediate_size", "max_position_embeddings", "sliding_window"),
    *("original_max_position_embeddings", "sliding_window_pattern", "_sliding_window_pattern"),
    *("no_rope_layer_interval", "global_attn_every_n_layers", "local_attention"),
    *("type_vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers"),
    *("num_heads", "relative_attention_num_buckets", "relative_attention_max_distance", "r"),
}
_COUNTS = {"max_window_layers", "pad_token_id", "decoder_start_token_id"}
_POSITIVE = {
    *("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "rope_theta"),
    *("rope_local_base_freq", "global_rope_theta", "local_rope_theta", "query_pre_attn_scalar"),
    *("attn_logit_softcapping", "final_logit_softcapping", "attention_multiplier", "factor"),
    *("embedding_multiplier", "residual_multiplier", "logits_scaling", "low_freq_factor"),
    *("high_freq_factor", "attention_factor", "partial_rotary_factor", "lora_alpha"),
}
_POSITIVE_LISTS = {"short_factor", "long_factor"}
_FLAGS = {"tie_word_embeddings", "use_sliding_window", "scale_decoder_outputs", "use_rslora"}


def check_number(name: str, value: Any) -> None:
    """Refuse a value that would be taken for another number, or for none; null is left out.

    Raises:
      ValueError: a text, a yes or no, or a number out of the range of the field called ``name``.
    """
    if value is None:
        return
    if name in _FLAGS and not isinstance(value, bool):
        raise ValueError(f"{name} = {value!r} must be true or false")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in _SIZES and not (whole and value >= 1):
        raise ValueError(f"{name} = {value!r} must be a positive whole number")
    if name in _COUNTS and not (whole and value >= 0):
        raise ValueError(f"{name} = {value!r} must be a whole number, not negative")
    if name in _POSITIVE and not _is_positive(value):
        raise ValueError(f"{name} = {value!r} must be a positive number")
    if name in _POSITIVE_LISTS and not (isinstance(value, list) and all(map(_is_positive, value))):
        raise ValueError(f"{name} = {short(value)} must be a list of positive numbers")


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


class TrackedFields(Mapping[str, Any]):
    """The fields of a JSON object, which remembers those that were read."""

    def __init__(self, fields: Mapping[str, Any]):
        self._fields, self._read = dict(fields), set[str]()

    def __getitem__(self, name: str) -> Any:
        """A field's value; ValueError where it makes no number of this field."""
        self._read.add(name)
        value = self._fields[name]
        check_number(name, value)
        return value

    def peek(self, name: str) -> Any:
        """A field's value, None where it is absent; it is not taken for read."""
        return self._fields.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def refuse_rest(self, idle: Idle, where: str) -> None:
        """Refuse the fields that were not read, unless they change nothing.

        Raises:
          InputError: names the first few of them.
        """
        unknown, other = [], []
        for name, value in self._fields.items():
            if name in self._read:
                continue
            if name not in idle:
                unknown.append(f"{name} = {short(value)}")
                continue
            allowed = idle[name]
            if allowed is None or (allowed(value) if callable(allowed) else value in allowed):
                continue
            plain = [] if callable(allowed) else [repr(v) for v in allowed if v is not None]
            only = f", only {' or '.join(plain)}" if plain else ""
            other.append(f"{name} = {short(value)} is not supported{only}")
        if other:
            raise InputError(f"{where}: {'; '.join(other[:_SHOWN])}")
        if unknown:
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise InputError(
                f"{where}: {', '.join(unknown[:_SHOWN])}{more} is not known, and may change what "
                f"the model computes; if it does not, remove it from the file"
            )


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_NOTHING = (None, False)

# What any config.json may hold and what changes no activation in inference: names, versions,
# training's dropout and initialization, what to return, and how a head of classes names them.
_ANYTHING = (
    *("_name_or_path", "name_or_path", "architectures", "transformers_version", "torch_dtype"),
    *("dtype", "use_cache", "tokenizer_class", "processor_class", "finetuning_task"),
    *("_commit_hash", "_attn_implementation", "attn_implementation"),
    *("attn_implementation_internal", "_attn_implementation_autoset", "_flash_attn_2_enabled"),
    *("_attn_implementation_internal",),
    *("use_flash_attn", "use_flash_attention_2", "_experts_implementation"),
    *("unsloth_version", "unsloth_fixed", "return_dict", "output_hidden_states"),
    *("output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss", "id2label", "label2id"),
    *("num_labels", "problem_type", "task_specific_params", "chunk_size_feed_forward"),
    *("initializer_range", "initializer_factor", "initializer_cutoff_factor", "attention_dropout"),
    *("hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "embd_pdrop"),
    *("resid_pdrop", "attn_pdrop", "embedding_dropout", "mlp_dropout", "dropout", "dropout_rate"),
    *("classifier_dropout", "hidden_dropout_rate", "attention_dropout_prob", "resid_dropout"),
    *("gradient_checkpointing", "neftune_noise_alpha", "pretraining_tp", "bos_token_id"),
    *("eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id"),
    *("unk_token_id", "decoder_start_token_id", "model_max_length", "cache_implementation"),
    *("router_aux_loss_coef", "output_router_logits", "_num_labels", "directionality"),
    # Code beside the weights: the architecture's own runs here, as in transformers by default.
    "auto_map",
)

# Settings of generation, which older releases keep in config.json: prompts.PromptConfig and
# sampler.Sampling stand in their place here, and exports keep them.
GENERATION = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "do_sample", "temperature"),
    *("top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("num_beams", "num_beam_groups", "early_stopping", "diversity_penalty", "length_penalty"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "penalty_alpha"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "force_words_ids", "constraints"),
    *("renormalize_logits", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
    *("sequence_bias", "guidance_scale", "num_return_sequences", "output_scores", "output_logits"),
    *("return_dict_in_generate", "low_memory", "dola_layers", "token_healing", "max_time"),
    *("watermarking_config", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight"),
    *("assistant_lookbehind", "is_assistant", "num_assistant_tokens", "target_lookbehind"),
    *("num_assistant_tokens_schedule", "speculation_type", "use_mtp", "cache_config"),
    *("max_cache_len", "compile_config", "disable_compile", "continuous_batching_config"),
    *("prefill_chunk_size", "return_legacy_cache", "_from_model_config", "forced_decoder_ids"),
    *("chat_format", "max_window_size", "trust_remote_code"),
)

_ONLY: Idle = {
    "is_decoder": None,
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": (None, {}),
    "prefix": (None, ""),
    "quantization_config": (None,),
    "compression_config": (None,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "partial_rotary_factor": (None, 1.0),
    "rope_interleaved": _NOTHING,
    "sliding_window": (None,),
    "use_sliding_window": _NOTHING,
    "attention_bias": _NOTHING,
    "mlp_bias": _NOTHING,
    "use_mrope": _NOTHING,
    "use_qk_norm": _NOTHING,
    "use_bidirectional_attention": _NOTHING,
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "layer_types": lambda kinds: set(kinds or ()) <= {"full_attention"},
}

CONFIG: Idle = {**dict.fromkeys((*_ANYTHING, *GENERATION)), **_ONLY}
"""What a config.json may say beside the fields that are read."""
