"""The `model` section: the architecture, by explicit fields and never by name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from roots.config.moe import MoEConfig
from roots.config.rotary import RotaryScaling
from roots.config.section import Section, is_null

GATED_MULTIPLE = 64
GATED_ACTIVATIONS = ("swiglu", "geglu", "geglu_tanh")
# Where the value lies of a field that may be null and then follows from others.
RESOLVED_FIELDS = {
    "num_kv_heads": "kv_heads",
    "head_dim": "head_size",
    "qkv_bias": "has_qkv_bias",
    "ffn_hidden_size": "ffn_size",
    "num_encoder_layers": "encoder_layers",
    "source_length": "source_tokens",
}


class ModelConfig(Section):
    """A Transformer. Defaults are a GPT-2-shaped decoder small enough for a laptop."""

    architecture: Literal["decoder", "encoder_decoder", "encoder"] = Field(
        "decoder",
        description="causal decoder; encoder with a decoder that reads it; bidirectional encoder",
    )
    hidden_size: int = Field(256, gt=0, description="width of the residual stream")
    num_layers: int = Field(4, gt=0, description="number of Transformer blocks")
    num_encoder_layers: int | None = Field(
        None, gt=0, description="blocks of an encoder_decoder's encoder; null: num_layers"
    )
    num_heads: int = Field(4, gt=0, description="number of query heads")
    num_kv_heads: int | None = Field(
        None, gt=0, description="number of key/value heads; null: as many as query heads"
    )
    head_dim: int | None = Field(
        None, gt=0, description="width of one attention head; null: hidden_size / num_heads"
    )
    ffn_hidden_size: int | None = Field(
        None,
        gt=0,
        description="inner width of the MLP; null: 4 x hidden_size, or 8/3 rounded up to 64 "
        "for a gated one",
    )
    vocab_size: int = Field(
        50257,
        gt=0,
        description="number of tokens the tokenizer knows; null: as many as that of data.train, "
        "or 50257 without data",
    )
    vocab_multiple: int = Field(
        128, gt=0, description="the embedding is padded to a multiple of this, on every layout"
    )
    sequence_length: int = Field(256, gt=0, description="tokens per sample")
    source_length: int | None = Field(
        None, gt=0, description="source tokens of an encoder_decoder; null: sequence_length"
    )
    position: Literal["learned", "rotary", "sinusoidal", "alibi", "relative", "none"] = Field(
        "learned", description="position encoding; alibi and relative bias the attention scores"
    )
    relative_buckets: int = Field(
        32, ge=4, multiple_of=4, description="learned biases a head of relative positions"
    )
    relative_max_distance: int = Field(
        128, gt=0, description="tokens from which on relative positions share one bucket"
    )
    rotary_base: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    rotary_fraction: float = Field(
        1.0, gt=0, le=1, description="share of every head that is rotated"
    )
    rotary_scaling: RotaryScaling = Field(
        RotaryScaling(), description="stretch of the rotary frequencies"
    )
    window: int | None = Field(
        None, gt=0, description="tokens up to its own that one attends to; null: all before it"
    )
    parallel_residual: bool = Field(
        False, description="attention and MLP both read the block's input, as in GPT-NeoX"
    )
    qk_norm: bool = Field(False, description="queries and keys are normalised head by head")
    norm: Literal["layer_norm", "rms_norm"] = Field("layer_norm", description="normalisation")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="norms before each branch, or after its sum with the residual stream"
    )
    norm_epsilon: float = Field(1e-5, gt=0, description="added to the variance inside norms")
    norm_zero_centred: bool = Field(
        False, description="norms scale by 1 + weight, so that weight decay pulls them to 1"
    )
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu", "geglu", "geglu_tanh"] = Field(
        "gelu", description="MLP activation: gelu (exact, or tanh form), relu, or gated ones"
    )
    bias: bool = Field(True, description="biases in linear layers and layer norms")
    qkv_bias: bool | None = Field(
        None, description="biases of queries, keys and values; null: as `bias`"
    )
    tied_embeddings: bool = Field(True, description="one matrix for the embedding and the head")
    embedding_scale: float = Field(
        1.0, gt=0, description="factor on token embeddings; the original Transformer: sqrt(width)"
    )
    embedding_norm: bool = Field(False, description="a norm behind the embedding")
    token_types: int = Field(
        0, ge=0, description="rows of a table of segments, of which every token gets the first"
    )
    head_transform: bool = Field(
        False, description="linear layer, gelu and norm before the head, as in BERT"
    )
    head_bias: bool = Field(False, description="a bias for every token in the head")
    head_scale: float = Field(
        1.0, gt=0, description="factor on what enters the head; a tied T5: 1 / sqrt(width)"
    )
    attention_scale: float | None = Field(
        None, gt=0, description="factor on attention scores; null: 1 / sqrt(head size); T5: 1"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="rate after embedding, attention and MLP")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="rate on the attention probabilities"
    )
    init_std: float = Field(0.02, gt=0, description="standard deviation of initial weights")
    moe: MoEConfig = Field(MoEConfig(), description="mixture of experts in place of MLPs")

    @model_validator(mode="before")
    @classmethod
    def _leave_vocabulary_open(cls, data: Any) -> Any:
        """A vocabulary of null is not set; whoever checks the whole config asks the data."""
        if isinstance(data, dict) and is_null(data.get("vocab_size")):
            return {key: value for key, value in data.items() if key != "vocab_size"}
        return data

    @property
    def head_size(self) -> int:
        """Width of one attention head, resolved."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, resolved."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases, resolved."""
        return self.bias if self.qkv_bias is None else self.qkv_bias

    @property
    def gated(self) -> bool:
        """Whether one half of the MLP's inner width gates the other."""
        return self.activation in GATED_ACTIVATIONS

    @property
    def ffn_size(self) -> int:
        """Inner width of the MLP, resolved."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        if not self.gated:
            return 4 * self.hidden_size
        return -(-8 * self.hidden_size // (3 * GATED_MULTIPLE)) * GATED_MULTIPLE

    @property
    def encoder_layers(self) -> int:
        """Blocks of the encoder that a decoder reads; 0 without one."""
        if self.architecture != "encoder_decoder":
            return 0
        return self.num_layers if self.num_encoder_layers is None else self.num_encoder_layers

    @property
    def source_tokens(self) -> int:
        """Length of the source that an encoder-decoder reads; 0 without one."""
        if self.architecture != "encoder_decoder":
            return 0
        return self.sequence_length if self.source_length is None else self.source_length

    @property
    def expert_ffn_size(self) -> int:
        """Inner width of one expert, resolved."""
        return self.moe.ffn_hidden_size or self.ffn_size

    @property
    def shared_expert_ffn_size(self) -> int:
        """Inner width of one shared expert, resolved."""
        return self.moe.shared_ffn_hidden_size or self.expert_ffn_size

    @property
    def shared_ffn_size(self) -> int:
        """Inner width of all shared experts together, resolved; 0 if there are none."""
        return self.moe.num_shared_experts * self.shared_expert_ffn_size

    def has_experts(self, layer: int) -> bool:
        """Whether block number `layer` (from 0) has experts in place of one MLP."""
        return self.moe.num_experts > 0 and (layer + 1) % self.moe.every == 0

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding matrix."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def rotary_size(self) -> int:
        """Number of rotated dimensions of every head (even)."""
        return int(self.head_size * self.rotary_fraction) // 2 * 2
