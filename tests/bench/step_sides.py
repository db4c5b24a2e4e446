"""The sides of tests.bench.step: one training step of equal models by ROOTS and by others.

Shapes: `gpt2` (learned positions, layer norm, gelu, tied) and `llama` (rotary, RMS norm, swiglu,
grouped heads, no biases, untied), of equal width and depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from roots.config import RunConfig, parse_config
from roots.config.batch import plan_batch
from roots.config.data import OpsConfig
from roots.data.batch import Batch
from roots.device import Device
from roots.models.init import initialise
from roots.models.options import BuildOptions
from roots.parallel.mesh import Mesh
from roots.training.assemble import build_engine, topology_of
from tests.helpers.decoders import build_decoder

LAYERS, WIDTH, HEADS, SEQUENCE, BATCH = 6, 384, 6, 256, 8
GPT2_VOCABULARY = 50257
LLAMA_VOCABULARY, LLAMA_KV_HEADS, LLAMA_INNER = 32000, 2, 1024
LEARNING_RATE = 3e-4
CLIPPING = 1.0
SEED = 1

Step = Callable[[Tensor], float]
Precision = Literal["fp32", "bf16"]
Shape = Literal["gpt2", "llama"]
SHAPES: tuple[Shape, ...] = ("gpt2", "llama")
SIDES = ("roots", "torch_ops", "bare", "transformers")


def run_config(
    shape: Shape, precision: Precision, *, torch_ops: bool = False, tensor: int = 1
) -> RunConfig:
    """The run that ROOTS trains: defaults, but for the architecture and one batch a step."""
    ops = dict.fromkeys(OpsConfig.model_fields, "torch") if torch_ops else {}
    if torch_ops:
        ops["attention"] = "torch_sdpa"
    model: dict[str, Any] = {
        "num_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_heads": HEADS,
        "sequence_length": SEQUENCE,
        "vocab_size": GPT2_VOCABULARY,
        "activation": "gelu_tanh",
    }
    if shape == "llama":
        model.update(
            num_kv_heads=LLAMA_KV_HEADS,
            ffn_hidden_size=LLAMA_INNER,
            vocab_size=LLAMA_VOCABULARY,
            position="rotary",
            norm="rms_norm",
            activation="swiglu",
            bias=False,
            tied_embeddings=False,
        )
    training = {
        "precision": precision,
        "micro_batch_size": BATCH,
        "global_batch_size": BATCH,
        "gradient_clipping": CLIPPING,
        "seed": SEED,
    }
    parallel = {"tensor": tensor, "zero_stage": 1}
    return parse_config({"model": model, "training": training, "ops": ops, "parallel": parallel})


def random_tokens(shape: Shape) -> Tensor:
    """One batch, the same for every side."""
    vocabulary = GPT2_VOCABULARY if shape == "gpt2" else LLAMA_VOCABULARY
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(vocabulary, (BATCH, SEQUENCE), generator=generator)


def make_step(side: str, shape: Shape, precision: Precision, device: Device) -> Step:
    """The step of one side on this process."""
    makers: dict[str, Callable[[], Step]] = {
        "roots": lambda: engine_step(run_config(shape, precision), device),
        "torch_ops": lambda: engine_step(run_config(shape, precision, torch_ops=True), device),
        "bare": lambda: bare_step(run_config(shape, precision)),
        "transformers": lambda: transformers_step(shape, precision),
    }
    return makers[side]()


def engine_step(config: RunConfig, device: Device, world_size: int = 1) -> Step:
    """What `roots train` does with one global batch, as this rank of the process group."""
    plan = plan_batch(config, world_size)
    engine = build_engine(config, plan, Mesh.create(topology_of(config, plan)), device)

    def step(tokens_BT: Tensor) -> float:
        return engine.train_step([_batch(tokens_BT)], LEARNING_RATE).loss

    return step


def bare_step(config: RunConfig) -> Step:
    """The same model without an engine: forward, backward, clipping, torch's fused AdamW.

    In bf16 with masters and moments in fp32, as every engine keeps them.
    """
    options = BuildOptions.of_run(config)
    decoder = build_decoder(config.model, Mesh.single(), options=options)
    initialise(decoder, SEED, config.model)
    parameters = list(decoder.parameters())
    masters = [nn.Parameter(p.detach().float()) for p in parameters]
    widened = config.training.precision != "fp32"
    trained = masters if widened else parameters
    optimizer = _adamw(trained)

    def step(tokens_BT: Tensor) -> float:
        batch = _batch(tokens_BT)
        loss = decoder(
            batch.tokens_BT,
            batch.document_starts_BT,
            batch.dropout_keys_B,
            batch.labels_BT,
            batch.loss_weights_BT,
        )
        loss.backward()
        if widened:
            for master, parameter in zip(masters, parameters, strict=True):
                assert parameter.grad is not None
                master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(trained, CLIPPING)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if widened:
            with torch.no_grad():
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)
        return float(loss.detach())

    return step


def transformers_step(shape: Shape, precision: Precision) -> Step:
    """The loop that a user of transformers writes; bf16 by torch.autocast."""
    torch.manual_seed(SEED)
    model = (_gpt2() if shape == "gpt2" else _llama()).train()
    optimizer = _adamw(model.parameters())

    def step(tokens_BT: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(tokens_BT, labels=tokens_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=LAYERS,
        n_embd=WIDTH,
        n_head=HEADS,
        n_positions=SEQUENCE,
        vocab_size=GPT2_VOCABULARY,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        intermediate_size=LLAMA_INNER,
        num_attention_heads=HEADS,
        num_key_value_heads=LLAMA_KV_HEADS,
        max_position_embeddings=SEQUENCE,
        vocab_size=LLAMA_VOCABULARY,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def _adamw(parameters: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )


def _batch(tokens_BT: Tensor) -> Batch:
    zeros_BT = torch.zeros_like(tokens_BT)
    return Batch(
        tokens_BT=tokens_BT,
        labels_BT=tokens_BT.roll(-1, dims=1),
        loss_weights_BT=torch.full(tokens_BT.shape, 1.0 / SEQUENCE),
        document_starts_BT=zeros_BT,
        dropout_keys_B=zeros_BT[:, 0],
        source_BS=zeros_BT[:, :0],
        source_lengths_B=zeros_BT[:, 0],
    )
