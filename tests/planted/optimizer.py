"""Bugs in what the optimizer is told: settings, groups, rates, clipping."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "betas swapped",
        "training/engine/optimizer.py",
        '"betas": (settings.beta1, settings.beta2),',
        '"betas": (settings.beta2, settings.beta1),',
        "tests/training/test_adamw.py",
    ),
    PlantedBug(
        "epsilon of the library",
        "training/engine/optimizer.py",
        '"eps": settings.epsilon,',
        '"eps": 1e-8,',
        "tests/training/test_adamw.py",
    ),
    PlantedBug(
        "epsilon inside the root",
        "training/engine/optimizer.py",
        '"eps": settings.epsilon,',
        '"eps": settings.epsilon**0.5,',
        "tests/training/test_adamw.py",
    ),
    PlantedBug(
        "norms and biases decay",
        "training/engine/optimizer.py",
        '{"params": list(plain), "weight_decay": 0.0},',
        '{"params": list(plain)},',
        "tests/training/engine/test_optimizer.py",
    ),
    PlantedBug(
        "experts do not decay",
        "training/engine/optimizer.py",
        ('            "params": experts,\n'),
        ('            "params": experts,\n            "weight_decay": 0.0,\n'),
        "tests/training/engine/test_optimizer.py",
    ),
    PlantedBug(
        "nothing decays",
        "models/init.py",
        (
            "decay = [parameter for parameter in module.parameters() if parameter.ndim >= 2]\n"
            "    plain = [parameter for parameter in module.parameters() if parameter.ndim < 2]"
        ),
        (
            "decay = [parameter for parameter in module.parameters() if parameter.ndim > 2]\n"
            "    plain = [parameter for parameter in module.parameters() if parameter.ndim <= 2]"
        ),
        "tests/models/test_init.py -k decay",
    ),
    PlantedBug(
        "learning rate of the first group alone",
        "training/engine/step.py",
        "for group in self.deepspeed.optimizer.param_groups:",
        "for group in self.deepspeed.optimizer.param_groups[:1]:",
        "tests/training/test_adamw.py",
    ),
    PlantedBug(
        "decay not multiplied by the learning rate",
        "training/engine/optimizer.py",
        'decays = {"weight_decay": config.optimizer.weight_decay}',
        'decays = {"weight_decay": config.optimizer.weight_decay * config.optimizer.learning_rate}',
        "tests/training/engine/test_optimizer.py",
    ),
    PlantedBug(
        "warm-up one step late",
        "training/schedule.py",
        "return min(shape, peak * (step + 1) / warmup)",
        "return min(shape, peak * step / warmup)",
        "tests/training/test_schedule.py",
    ),
    PlantedBug(
        "cosine falls to zero and is cut at the floor",
        "training/schedule.py",
        "return low + (peak - low) * (1 + math.cos(math.pi * fraction)) / 2",
        "return max(low, peak * (1 + math.cos(math.pi * fraction)) / 2)",
        "tests/training/test_schedule.py",
    ),
    PlantedBug(
        "decay counts from the first step",
        "training/schedule.py",
        "fraction = _fraction(step, warmup, length)",
        "fraction = _fraction(step, 0, length)",
        "tests/training/test_schedule.py",
    ),
    PlantedBug(
        "inverse root of the step before",
        "training/schedule.py",
        "math.sqrt(max(warmup, 1) / (step + 1))",
        "math.sqrt(max(warmup, 1) / max(step, 1))",
        "tests/training/test_schedule.py",
    ),
    PlantedBug(
        "rate of the step after",
        "training/loop.py",
        ("        step,\n        run.config.training.steps,"),
        ("        step + 1,\n        run.config.training.steps,"),
        "tests/training/test_loop.py",
    ),
    PlantedBug(
        "small gradients scaled up to the largest norm",
        "training/engine/gradients.py",
        "factor = torch.clamp(largest / (norm + EPSILON), max=1.0)",
        "factor = largest / (norm + EPSILON)",
        "tests/training/engine/test_gradients.py",
    ),
    PlantedBug(
        "no clipping under ZeRO",
        "training/engine/deepspeed_json.py",
        "clipping = 0.0 if clips_outside_engine(config) else config.training.gradient_clipping",
        "clipping = 0.0",
        "tests/training/engine/test_deepspeed_json.py",
    ),
    PlantedBug(
        "settings of the checkpoint stay in force",
        "training/engine/settings.py",
        "        group.update({**own, **kept})",
        (
            "        group.update({**own, **kept})\n"
            '        group["weight_decay"] = optimizer.param_groups[0].get("weight_decay", 0.0)'
        ),
        "tests/integration/test_old_formats.py -k goes_on",
    ),
    PlantedBug(
        "adam starts its count again on resume",
        "training/engine/settings.py",
        '    count = int(states[0].get("step", optimizer.param_groups[0].get("step", 0)))',
        "    count = 0",
        "tests/integration/test_old_formats.py -k goes_on",
    ),
    PlantedBug(
        "tokens of a warm-up counted as steps",
        "config/training.py",
        "return float(steps) if tokens is None else tokens / tokens_per_step",
        "return float(steps) if tokens is None else tokens / max(tokens_per_step, 1) ** 0.5",
        "tests/training/test_schedule.py",
    ),
    PlantedBug(
        "final decay of wsd from the start",
        "training/schedule.py",
        "_fraction(step, total_steps - length, total_steps)",
        "_fraction(step, 0, total_steps)",
        "tests/training/test_schedule.py",
    ),
    PlantedBug(
        "gradients of embeddings clipped by a norm of their own",
        "training/engine/gradients.py",
        (
            "    squares = [\n"
            "        _sum_of_squares(parameter.grad)\n"
            "        for parameter in parameters\n"
        ),
        (
            "    squares = [\n"
            "        _sum_of_squares(parameter.grad)\n"
            "        for parameter in parameters[1:]\n"
        ),
        "tests/training/engine/test_gradients.py",
    ),
]
