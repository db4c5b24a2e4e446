"""Bugs in generation: caches, positions, beams, the choice of a token."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "length of a beam one too long",
        "generation/beam.py",
        "penalty = float(length) ** options.length_penalty",
        "penalty = float(length + 1) ** options.length_penalty",
        "tests/generation/test_beam.py tests/generation/test_beam_transformers.py",
    ),
    PlantedBug(
        "token beyond top_p kept at equality",
        "generation/sampling.py",
        "before_BV >= options.top_p",
        "before_BV > options.top_p",
        "tests/generation/test_sampling.py",
    ),
    PlantedBug(
        "temperature after top_p",
        "generation/sampling.py",
        "_restrict(logits_BV.float() / options.temperature, options)",
        "_restrict(logits_BV.float(), options) / options.temperature",
        "tests/generation/test_sampling.py -k temperature_makes",
    ),
    PlantedBug(
        "padding visible behind the prompt",
        "generation/generate.py",
        "starts.append([place if stopped else self.width - len(row.prompt)])",
        "starts.append([place if stopped else 0])",
        "tests/generation/test_generate.py",
    ),
    PlantedBug(
        "values of beams stay where they were",
        "models/attention/cache.py",
        ("            layer.v_BSkD[:, : layer.length] = layer.v_BSkD[index_B, : layer.length]\n"),
        "",
        "tests/generation/test_write.py",
    ),
    PlantedBug(
        "cached tokens at the position of the first",
        "models/embedding.py",
        "return token_positions(marks, past or 0, reset, here_T)",
        "return token_positions(marks, 0, reset, here_T)",
        "tests/generation/test_generate.py",
    ),
    PlantedBug(
        "ends beyond the best beams finish",
        "generation/beam.py",
        ("    allowed_BC[:, beams:] = False\n"),
        "",
        "tests/generation/test_beam.py tests/generation/test_beam_transformers.py",
    ),
    PlantedBug(
        "keys of the source not normalised",
        "models/attention/cross_attention.py",
        "return k_BSkD if self.key_norm is None else self.key_norm(k_BSkD), v_BSkD",
        "return k_BSkD, v_BSkD",
        "tests/models/attention/test_cross_attention.py",
    ),
    PlantedBug(
        "generator seeded anew for every token",
        "generation/generate.py",
        "generator).tolist()",
        "generator.manual_seed(options.seed)).tolist()",
        "tests/generation/test_generate.py",
    ),
    PlantedBug(
        "loaded model tells documents apart always",
        "generation/load.py",
        ("        separate_documents=config.data.separate_documents,\n"),
        "",
        "tests/generation/test_load.py",
    ),
    PlantedBug(
        "loaded model forgets reset positions",
        "generation/load.py",
        ("        reset_positions=config.data.reset_positions,\n"),
        "",
        "tests/generation/test_load.py",
    ),
    PlantedBug(
        "sources without their end",
        "generation/prompts.py",
        "return [[*around.begin, *ids, around.end] for ids in encoded]",
        "return [[*around.begin, *ids] for ids in encoded]",
        "tests/generation/test_prompts.py",
    ),
    PlantedBug(
        "prompts without their beginning",
        "generation/prompts.py",
        "return [[*begin, *ids] if ids else list(start) for ids in encoded]",
        "return [[*ids] if ids else list(start) for ids in encoded]",
        "tests/generation/test_prompts.py",
    ),
    PlantedBug(
        "score of a beam not divided at the end",
        "generation/beam.py",
        "scores_BC = (candidates.scores_BN / penalty).masked_fill(~allowed_BC, _NEVER)",
        "scores_BC = candidates.scores_BN.masked_fill(~allowed_BC, _NEVER)",
        "tests/generation/test_beam.py",
    ),
    PlantedBug(
        "the k-th likeliest token left out",
        "generation/sampling.py",
        "logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)",
        "logits_BV = logits_BV.masked_fill(logits_BV <= smallest_B1, -torch.inf)",
        "tests/generation/test_sampling.py",
    ),
]
