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
        "skipped steps still move the weights in fp32",
        "training/engine/decision.py",
        ("        if not optimizer.overflow:\n            apply()\n        elif"),
        ("        apply()\n        if optimizer.overflow and"),
        "tests/training/engine/test_decision.py",
    ),
]
