"""Keys of a config.json that change nothing that a model computes from tokens, in any family.

What an entry of a family reads is no matter of this list, nor what only that family has
(Family.harmless). Special tokens are read elsewhere (special_tokens.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Where the file comes from, and how transformers runs it.
_BOOKKEEPING = (
    *("_name_or_path", "architectures", "auto_map", "custom_pipelines", "model_type"),
    *("transformers_version", "transformers.js_config", "unsloth_version", "unsloth_fixed"),
    *(
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "_commit_hash",
    ),
    *("dtype", "torch_dtype", "torchscript", "use_bfloat16", "use_cache", "use_return_dict"),
    *("gradient_checkpointing", "chunk_size_feed_forward", "max_window_layers"),
    *("output_attentions", "output_hidden_states", "output_past", "output_router_logits"),
    *("return_dict", "return_dict_in_generate", "output_scores", "use_flash_attn"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
    *("task_specific_params", "classifier_dropout", "tokenizer_class", "prefix"),
    *("is_encoder_decoder", "cross_attention_hidden_size", "tie_encoder_decoder"),
    *("initializer_factor", "init_method", "pretraining_dataset", "max_sequence_length"),
    *("_flash_attn_2_enabled", "use_flash_attention", "use_flash_attention_2"),
)

# How text is written, which older files hold beside the model; ROOTS has options for it.
_WRITING = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "mask_token_id"),
    *("max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams"),
    *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
    *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("encoder_no_repeat_ngram_size", "num_return_sequences", "begin_suppress_tokens"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
    *("tf_legacy_loss", "exponential_decay", "unk_token_id"),
)

HARMLESS_KEYS = frozenset((*_BOOKKEEPING, *_WRITING))

# Keys that would change a model, with the values under which they do not: what the families
# without such an entry compute anyway, and what released models spell all the same (SmolLM2,
# Qwen2.5 and models distilled into them).
HARMLESS_VALUES: Mapping[str, Any] = {
    "add_cross_attention": False,
    "alibi": False,
    "attention_bias": False,
    "is_llama_config": True,
    "mlp_bias": False,
    "mlp_only_layers": [],
    "parallel_attn": False,
    "pruned_heads": {},
    "rope_interleaved": False,
    "use_mrope": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
}
