"""Parameter counts of a model, in closed form from its config.

Counts are of the global model, with the vocabulary padded to `model.vocab_multiple` as it is
stored; a tied head counts once. A test compares them with the parameters of the built model.
"""

from __future__ import annotations

from dataclasses import dataclass

from roots.config.model import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the whole model, by part.

    position_embedding: learned positions of both stacks, or tables of relative ones
    embedding_extras:   segments and the norms behind the embeddings
    encoder:            blocks and final norm of the encoder that a decoder reads
    head:               the matrix where it is not tied, its bias, and what stands before it
    idle:               parameters of the experts that a token does not use
    """

    token_embedding: int
    position_embedding: int
    embedding_extras: int
    encoder: int
    blocks: int
    final_norm: int
    head: int
    idle: int = 0

    @property
    def total(self) -> int:
        """Every parameter of the model once."""
        return self.non_embedding + self.embedding

    @property
    def embedding(self) -> int:
        """The first layer: all tables, and the norms behind them."""
        return self.token_embedding + self.position_embedding + self.embedding_extras

    @property
    def active(self) -> int:
        """Parameters that one token meets: without the experts that it does not go to."""
        return self.total - self.idle

    @property
    def non_embedding(self) -> int:
        """What is left without the first layer."""
        return self.encoder + self.blocks + self.final_norm + self.head


def count_parameters(model: ModelConfig) -> ParameterCounts:
    """Count the parameters of the model that `model` describes."""
    table = model.padded_vocab_size * model.hidden_size
    stacks = 2 if model.architecture == "encoder_decoder" else 1
    extras = model.token_types * model.hidden_size
    extras += norm_parameters(model) if model.embedding_norm else 0
    final_norm = final_norm_parameters(model)
    encoder_norm = final_norm if stacks == 2 else 0
    return ParameterCounts(
        token_embedding=table,
        position_embedding=position_parameters(model),
        embedding_extras=stacks * extras,
        encoder=model.encoder_layers * encoder_block_parameters(model) + encoder_norm,
        blocks=sum(block_parameters(model, layer) for layer in range(model.num_layers)),
        final_norm=final_norm,
        head=(0 if model.tied_embeddings else table)
        + head_bias_parameters(model)
        + head_transform_parameters(model),
        idle=num_expert_layers(model)
        * max(0, model.moe.num_experts - model.moe.top_k)
        * expert_parameters(model),
    )


def layer_parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters of every layer of models.build.model_layers, by its name and in its order.

    A tied head counts its own copy, which it has where it is built on another stage than the
    embedding.
    """
    counts, final_norm = count_parameters(model), final_norm_parameters(model)
    sizes = {"embedding": counts.embedding}
    for layer in range(model.encoder_layers):
        sizes[f"encoder.layers.{layer}"] = encoder_block_parameters(model)
    if model.encoder_layers and final_norm:
        sizes["encoder.final_norm"] = final_norm
    for layer in range(model.num_layers):
        sizes[f"layers.{layer}"] = block_parameters(model, layer)
    if final_norm:
        sizes["final_norm"] = final_norm
    if model.head_transform:
        sizes["head_transform"] = head_transform_parameters(model)
    sizes["head"] = counts.token_embedding + head_bias_parameters(model)
    return sizes


def position_parameters(model: ModelConfig) -> int:
    """Learned position vectors, or tables of relative positions, of one or two stacks."""
    if model.position == "learned":
        return (model.sequence_length + model.source_tokens) * model.hidden_size
    if model.position == "relative":
        stacks = 2 if model.architecture == "encoder_decoder" else 1
        return stacks * model.relative_buckets * model.num_heads
    return 0


def final_norm_parameters(model: ModelConfig) -> int:
    """Parameters of the norm that ends a stack: none where norms stand behind the branches."""
    return norm_parameters(model) if model.norm_position == "pre" else 0


def head_bias_parameters(model: ModelConfig) -> int:
    """One number a row of the padded vocabulary, if the head has a bias."""
    return model.padded_vocab_size if model.head_bias else 0


def head_transform_parameters(model: ModelConfig) -> int:
    """Linear layer and norm before the head, if there are any."""
    if not model.head_transform:
        return 0
    width = model.hidden_size
    return width * width + (width if model.bias else 0) + norm_parameters(model)


def block_parameters(model: ModelConfig, layer: int = 0) -> int:
    """Parameters of block number `layer` of the main stack, which reads the encoder where there is
    one, and may have experts in place of its MLP."""
    cross = 0
    if model.architecture == "encoder_decoder":
        cross = norm_parameters(model) + attention_parameters(model)
    if model.has_experts(layer):
        cross += moe_parameters(model) - mlp_parameters(model)
    return encoder_block_parameters(model) + cross


def encoder_block_parameters(model: ModelConfig) -> int:
    """Parameters of one block without cross-attention: two norms, attention and MLP."""
    return 2 * norm_parameters(model) + attention_parameters(model) + mlp_parameters(model)


def norm_parameters(model: ModelConfig, size: int | None = None) -> int:
    """Parameters of one norm over `size` (default: the stream): a scale, in a layer norm with
    biases a shift too."""
    has_shift = model.norm == "layer_norm" and model.bias
    return (model.hidden_size if size is None else size) * (2 if has_shift else 1)


def attention_parameters(model: ModelConfig) -> int:
    """Parameters of one attention, to itself or to a memory: projections of queries, keys, values
    and output, norms of the heads."""
    biases = (qkv_size(model) if model.has_qkv_bias else 0) + (
        model.hidden_size if model.bias else 0
    )
    head_norms = 2 * norm_parameters(model, model.head_size) if model.qk_norm else 0
    return attention_matrix_parameters(model) + biases + head_norms


def mlp_parameters(model: ModelConfig, width: int | None = None) -> int:
    """Parameters of one MLP: up projection (twice as wide for a gated one) and down projection."""
    biases = up_size(model, width) + model.hidden_size if model.bias else 0
    return mlp_matrix_parameters(model, width) + biases


def moe_parameters(model: ModelConfig) -> int:
    """Parameters of a layer of experts: router, experts, shared experts and their gate."""
    experts = model.moe.num_experts * (model.hidden_size + expert_parameters(model))
    shared = model.shared_ffn_size
    gate = shared_gate_parameters(model)
    return experts + gate + (mlp_parameters(model, shared) if shared else 0)


def shared_gate_parameters(model: ModelConfig) -> int:
    """One number a feature, where shared experts have a gate."""
    gated = model.shared_ffn_size and model.moe.shared_expert_gate
    return model.hidden_size if gated else 0


def expert_parameters(model: ModelConfig) -> int:
    """Parameters of one expert, which has no biases."""
    return mlp_matrix_parameters(model, model.expert_ffn_size)


def num_expert_layers(model: ModelConfig) -> int:
    """Number of blocks with experts."""
    return sum(model.has_experts(layer) for layer in range(model.num_layers))


def attention_matrix_parameters(model: ModelConfig) -> int:
    """Weights of the QKV and output projections of one block, biases left out."""
    query_size = model.num_heads * model.head_size
    return model.hidden_size * (qkv_size(model) + query_size)


def mlp_matrix_parameters(model: ModelConfig, width: int | None = None) -> int:
    """Weights of the up and down projections of one MLP, biases left out.

    `width`: its inner width, None for that of a dense MLP.
    """
    inner = model.ffn_size if width is None else width
    return model.hidden_size * (up_size(model, inner) + inner)


def qkv_size(model: ModelConfig) -> int:
    """Outputs of the fused QKV projection."""
    return (model.num_heads + 2 * model.kv_heads) * model.head_size


def up_size(model: ModelConfig, width: int | None = None) -> int:
    """Outputs of the up projection: gate and up for a gated MLP."""
    return (model.ffn_size if width is None else width) * (2 if model.gated else 1)
