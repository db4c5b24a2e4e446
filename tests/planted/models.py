"""Bugs in what a model computes: positions, windows, norms, initial values."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "window one key too wide",
        "ops/attention_ranges.py",
        "inside_TS = keys_S > positions_T1 - window",
        "inside_TS = keys_S >= positions_T1 - window",
        "tests/ops/test_attention.py -k 'windows_and_ranges'",
    ),
    PlantedBug(
        "second bias lost where branches are summed once",
        "models/block.py",
        "return y_BTH, sum(given[1:], given[0]) if given else None",
        "return y_BTH, given[0] if given else None",
        "tests/exchange/hf/test_parity.py -k 'neox and not whole and not serial'",
    ),
    PlantedBug(
        "residual writers as wide as the depth alone",
        "models/init.py",
        'branches = 3 if model.architecture == "encoder_decoder" else 2',
        "branches = 1",
        "tests/models/test_init.py -k spread",
    ),
    PlantedBug(
        "amplitude of YaRN forgotten",
        "models/attention/geometry.py",
        "table_of_frequencies(positions_P, frequencies_R, amplitude)",
        "table_of_frequencies(positions_P, frequencies_R)",
        "tests/exchange/hf/test_parity.py -k yarn",
    ),
    PlantedBug(
        "ends of YaRN swapped",
        "models/attention/rotary.py",
        "first = max(math.floor(dim_that_makes(scaling.beta_fast)), 0)",
        "first = max(math.floor(dim_that_makes(scaling.beta_slow)), 0)",
        "tests/models/attention/test_rotary.py",
    ),
    PlantedBug(
        "slopes between powers from the second on",
        "models/attention/score_bias.py",
        "for head in range(0, 2 * power, 2)]",
        "for head in range(1, 2 * power, 2)]",
        "tests/models/test_encoder_decoder.py -k alibi_slopes",
    ),
    PlantedBug(
        "embedding scaled with its positions",
        "models/embedding.py",
        (
            "        if self.scale != 1.0:\n"
            "            x_BTH = x_BTH * self.scale\n"
            "        if self.positions is not None:\n"
            "            x_BTH = x_BTH + self.positions(positions)\n"
        ),
        (
            "        if self.positions is not None:\n"
            "            x_BTH = x_BTH + self.positions(positions)\n"
            "        if self.scale != 1.0:\n"
            "            x_BTH = x_BTH * self.scale\n"
        ),
        "tests/models/test_embedding.py",
    ),
    PlantedBug(
        "target's dropout drawn for the source too",
        "models/embedding.py",
        "self.site = name",
        'self.site = "embedding"',
        "tests/models/test_encoder_decoder.py -k every_place",
    ),
    PlantedBug(
        "zero-centred weights start at one",
        "models/init.py",
        'scales = name.endswith(".weight") and not model.norm_zero_centred',
        'scales = name.endswith(".weight")',
        "tests/models/test_decoder.py -k zero_centred",
    ),
    PlantedBug(
        "zero-centred weight without its one",
        "ops/norm.py",
        "return 1.0 + weight_H if zero_centred else weight_H",
        "return weight_H",
        "tests/ops/test_layer_norm.py -k 'is_as_accurate'",
    ),
    PlantedBug(
        "parallel branches read one norm",
        "models/block.py",
        "outputs = [(branch.name, branch.run(branch.norm(x_BTH))) for branch in branches]",
        "outputs = [(branch.name, branch.run(branches[0].norm(x_BTH))) for branch in branches]",
        "tests/exchange/hf/test_parity.py -k 'neox and not whole and not serial'",
    ),
    PlantedBug(
        "z-loss slope halved",
        "ops/cross_entropy.py",
        "z_slope_M1 = 2 * form.z_loss * (row_max_M1 + sum_exp_M1.log())",
        "z_slope_M1 = form.z_loss * (row_max_M1 + sum_exp_M1.log())",
        "tests/ops/test_cross_entropy.py -k 'smoothing_and_z_loss'",
    ),
    PlantedBug(
        "geometry of the batch before at the same address",
        "models/attention/geometry.py",
        ("            and self._version == tensor._version\n"),
        "",
        "tests/models/attention/test_geometry.py",
    ),
    PlantedBug(
        "cached mask of another window",
        "ops/attention_ranges.py",
        "wanted = (num_keys, causal, window, dtype)",
        "wanted = (num_keys, causal, dtype)",
        "tests/ops/test_attention_ranges.py",
    ),
    PlantedBug(
        "inner width of gated MLPs as of plain ones",
        "config/model.py",
        ("if not self.gated:\n            return 4 * self.hidden_size"),
        ("if self.hidden_size:\n            return 4 * self.hidden_size"),
        "tests/config/test_model.py",
    ),
    PlantedBug(
        "second stream of normal numbers is the first",
        "seeding.py",
        "second_key = key ^ _signed(_SECOND_STREAM)",
        "second_key = key",
        "tests/test_seeding.py",
    ),
    PlantedBug(
        "padding of an encoder's row is seen",
        "models/attention/geometry.py",
        "bounds_B2 = torch.stack((torch.zeros_like(lengths_B), lengths_B), dim=-1)",
        "bounds_B2 = torch.stack((0 * lengths_B, 0 * lengths_B + num_queries), dim=-1)",
        "tests/models/test_encoder_decoder.py -k padding",
    ),
    PlantedBug(
        "kept dropout elements not scaled up",
        "ops/dropout.py",
        "return 1.0 / (1.0 - rate)",
        "return 1.0",
        "tests/ops/test_dropout.py -k mean_is_kept",
    ),
    PlantedBug(
        "one dropout site for attention and MLP",
        "models/block.py",
        'f"{self.name}.{name}",',
        "self.name,",
        "tests/models/test_decoder.py -k every_place",
    ),
    PlantedBug(
        "gate and up of GEGLU exchanged",
        "models/mlp.py",
        "gate_BTf, up_BTf = z_BTz.chunk(2, dim=-1)",
        "up_BTf, gate_BTf = z_BTz.chunk(2, dim=-1)",
        "tests/models/test_transformers_encoders.py",
    ),
    PlantedBug(
        "post norms that leave the stream as it was",
        "models/block.py",
        "                x_BTH, _ = self._joined(x_BTH, run(x_BTH), masks, name, norm)",
        "                _, x_BTH = self._joined(x_BTH, run(x_BTH), masks, name, norm)",
        "tests/models/test_transformers_encoders.py",
    ),
]
