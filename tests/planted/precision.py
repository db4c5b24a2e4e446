"""Bugs in 16 bits: the loss scale, accumulation, what is agreed on."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "window counts on over an overflow",
        "training/engine/loss_scale.py",
        ("        scaler.last_overflow_iter = scaler.cur_iter\n"),
        "",
        "tests/training/engine/test_loss_scale.py",
    ),
    PlantedBug(
        "hysteresis one too long",
        "training/engine/loss_scale.py",
        "if scaler.cur_hysteresis > 1:",
        "if scaler.cur_hysteresis > 0:",
        "tests/training/engine/test_loss_scale.py",
    ),
    PlantedBug(
        "hysteresis not restored when the scale doubles",
        "training/engine/loss_scale.py",
        ("        scaler.cur_hysteresis = scaler.delayed_shift\n    scaler.cur_iter += 1"),
        "    scaler.cur_iter += 1",
        "tests/training/engine/test_loss_scale.py",
    ),
    PlantedBug(
        "bf16 gradients accumulate in bf16",
        "training/engine/deepspeed_json.py",
        '"data_types": {"grad_accum_dtype": "fp32"},',
        '"data_types": {"grad_accum_dtype": "bf16"},',
        "tests/training/engine/test_deepspeed_json.py",
    ),
    PlantedBug(
        "head's gradient added over chunks in 16 bits",
        "parallel/loss.py",
        "dtype = torch.float32 if several_chunks else weight_vH.dtype",
        "dtype = weight_vH.dtype",
        "tests/parallel/test_loss_chunks.py",
    ),
    PlantedBug(
        "gradients of fp16 logits not enlarged",
        "parallel/loss.py",
        ("    if dtype != torch.float16:\n        return 0, 0\n"),
        ("    if dtype != torch.float16 or chunk_tokens > 0:\n        return 0, 0\n"),
        "tests/parallel/test_loss.py -k unlikely",
    ),
    PlantedBug(
        "rotary frequencies in single precision",
        "models/attention/rotary.py",
        "index_R = torch.arange(half, dtype=torch.float64, device=device)",
        "index_R = torch.arange(half, dtype=torch.float32, device=device)",
        "tests/models/attention/test_rotary.py",
    ),
    PlantedBug(
        "norm statistics in 16 bits",
        "ops/rms_norm.py",
        "wide_x = x.to(accumulation_dtype(x.dtype))",
        "wide_x = x",
        "tests/ops/test_rms_norm.py -k 'squares_beyond or is_as_accurate'",
    ),
    PlantedBug(
        "loss scaler of before the checkpoint was read",
        "training/engine/step.py",
        "        own_the_scale(optimizer, self.config.loss_scale, self._notes)\n"
        "        # DeepSpeed's file",
        "        # DeepSpeed's file",
        "tests/integration/test_old_formats.py -k goes_on",
    ),
    PlantedBug(
        "overflows seen are forgotten on resume",
        "training/engine/loss_scale.py",
        "scaler.cur_hysteresis = max(1, settings.hysteresis - seen)",
        "scaler.cur_hysteresis = settings.hysteresis",
        "tests/training/engine/test_loss_scale.py",
    ),
    PlantedBug(
        "softmax of logits in the dtype of the logits",
        "generation/sampling.py",
        "_restrict(logits_V.float() / options.temperature, options)",
        "_restrict(logits_V / options.temperature, options)",
        "tests/generation/test_sampling.py -k 16_bits",
    ),
    PlantedBug(
        "norm of the gradient in float32 sums",
        "training/engine/gradients.py",
        (
            "    rows = torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32)\n"
            "    return rows.double().square().sum()"
        ),
        "    return torch.linalg.vector_norm(gradient, dtype=torch.float32).double().square()",
        "tests/training/engine/test_gradients.py",
    ),
    PlantedBug(
        "scale falls below its minimum",
        "training/engine/loss_scale.py",
        "max(scaler.cur_scale / FACTOR, scaler.min_scale)",
        "scaler.cur_scale / FACTOR",
        "tests/training/engine/test_loss_scale.py",
    ),
    PlantedBug(
        "skipped steps still move the weights in fp32",
        "training/engine/decision.py",
        ("        if not optimizer.overflow:\n            apply()\n        elif"),
        ("        apply()\n        if optimizer.overflow and"),
        "tests/training/engine/test_decision.py",
    ),
    PlantedBug(
        "replicas of 16-bit gradients summed in 16 bits",
        "training/engine/deepspeed_json.py",
        ('        "communication_data_type": "fp32",\n'),
        "",
        "tests/training/engine/test_summing.py",
    ),
    PlantedBug(
        "loss scale doubled before gradients are divided by it",
        "training/engine/loss_scale.py",
        ("        notes.at_floor = overflowed and update_scale(scaler, overflow=True)\n"),
        ("        notes.at_floor = update_scale(scaler, overflow=overflowed)\n"),
        "tests/training/engine/test_loss_scale.py",
    ),
]
