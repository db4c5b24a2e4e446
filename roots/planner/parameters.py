"""Parameter counts of a decoder, in closed form from its config.

Counts are of the global model, with the vocabulary padded to `model.vocab_multiple` as it is
stored; a tied head counts once. A test compares them with the parameters of the built model.
"""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.model import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the whole model, by part."""

    token_embedding: int
    position_embedding: int
    blocks: int
    final_norm: int
    head: int

    @property
    def total(self) -> int:
        """Every parameter of the model once."""
        return self.non_embedding + self.token_embedding + self.position_embedding

    @property
    def non_embedding(self) -> int:
        """What is left without the token and position tables."""
        return self.blocks + self.final_norm + self.head


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Count the parameters of the decoder that `model` describes."""
    table = model.padded_vocab_size * model.hidden_size
    learned = model.position == "learned"
    return ParameterCounts(
        token_embedding=table,
        position_embedding=model.sequence_length * model.hidden_size if learned else 0,
        blocks=model.num_layers * block_parameters(model),
        final_norm=norm_parameters(model),
        head=0 if model.tied_embeddings else table,
    )


def block_parameters(model: ModelConfig) -> int:
    """Parameters of one block: two norms, attention and MLP."""
    return 2 * norm_parameters(model) + attention_parameters(model) + mlp_parameters(model)


def norm_parameters(model: ModelConfig, size: int | None = None) -> int:
    """Parameters of one norm over `size` (default: the stream): a scale, in a layer norm with
    biases a shift too."""
    has_shift = model.norm == "layer_norm" and model.bias
    return (model.hidden_size if size is None else size) * (2 if has_shift else 1)


def attention_parameters(model: ModelConfig) -> int:
    """Parameters of one attention: fused QKV projection, output projection, norms of the heads."""
    biases = (qkv_size(model) if model.has_qkv_bias else 0) + (
        model.hidden_size if model.bias else 0
    )
    head_norms = 2 * norm_parameters(model, model.head_size) if model.qk_norm else 0
    return attention_matrix_parameters(model) + biases + head_norms


def mlp_parameters(model: ModelConfig) -> int:
    """Parameters of one MLP: up projection (twice as wide for a gated one) and down projection."""
    biases = up_size(model) + model.hidden_size if model.bias else 0
    return mlp_matrix_parameters(model) + biases


def attention_matrix_parameters(model: ModelConfig) -> int:
    """Weights of the QKV and output projections of one block, biases left out."""
    query_size = model.num_heads * model.head_size
    return model.hidden_size * (qkv_size(model) + query_size)


def mlp_matrix_parameters(model: ModelConfig) -> int:
    """Weights of the up and down projections of one block, biases left out."""
    return model.hidden_size * (up_size(model) + model.ffn_size)


def qkv_size(model: ModelConfig) -> int:
    """Outputs of the fused QKV projection."""
    return (model.num_heads + 2 * model.kv_heads) * model.head_size


def up_size(model: ModelConfig) -> int:
    """Outputs of the up projection: gate and up for a gated MLP."""
    return model.ffn_size * (2 if model.gated else 1)
