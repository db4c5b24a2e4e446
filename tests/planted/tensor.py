"""Bugs in tensor and sequence parallelism: sums left out or made twice, cuts, flags, values."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "norm weights not summed under sequence parallelism",
        "models/norm.py",
        "self.apart = axis if options.sequence_parallel else None",
        "self.apart = None",
        "tests/parallel/test_branches.py -k 'two_tensor_ranks and True-0.0'",
    ),
    PlantedBug(
        "head norms summed under sequence parallelism alone",
        "models/norm.py",
        ("        self.apart = axis\n\n    def forward(self, x_BTnD"),
        (
            "        self.apart = axis if options.sequence_parallel else None\n"
            "\n"
            "    def forward(self, x_BTnD"
        ),
        "tests/models/test_decoder.py -k 'tensor_parallel_decoder and all-options'",
    ),
    PlantedBug(
        "bias of a row-parallel layer not summed over slices",
        "parallel/linear.py",
        (
            "        if bias is not None and self.sequence_dim is not None:\n"
            "            bias = copy_to(bias, self.axis)\n"
        ),
        "",
        "tests/parallel/test_branches.py -k 'two_tensor_ranks and True-0.0'",
    ),
    PlantedBug(
        "learned positions not summed under sequence parallelism",
        "models/embedding.py",
        "weight = self.weight if self.axis is None else copy_to(self.weight, self.axis)",
        "weight = self.weight",
        "tests/parallel/test_branches.py -k 'two_tensor_ranks and True-0.0'",
    ),
    PlantedBug(
        "gradient of a column-parallel input not summed",
        "parallel/linear.py",
        ("            work = all_reduce_async(dx_MI, ctx.axis)\n"),
        "",
        "tests/parallel/test_linear.py -k 'column_linear_matches and 2-plain-False'",
    ),
    PlantedBug(
        "bias of a row-parallel layer added on every rank",
        "parallel/linear.py",
        (
            "        if not self.partial:\n"
            "            y = self.summed(y)\n"
            "        if self.skip_bias:\n"
            "            return y, bias\n"
            "        return y if bias is None else y + bias"
        ),
        (
            "        if not self.skip_bias and bias is not None:\n"
            "            y = y + bias\n"
            "        if not self.partial:\n"
            "            y = self.summed(y)\n"
            "        return (y, bias) if self.skip_bias else y"
        ),
        "tests/parallel/test_linear.py -k 'row_linear_matches and 2-False'",
    ),
    PlantedBug(
        "first token of a slice of the vocabulary is nobody's",
        "parallel/embedding.py",
        "foreign_BT = (tokens_BT < self.first) |",
        "foreign_BT = (tokens_BT <= self.first) |",
        "tests/parallel/test_embedding.py -k 'matches_unsharded and 2'",
    ),
    PlantedBug(
        "padding of the vocabulary takes part in the softmax",
        "parallel/loss.py",
        "valid=max(0, min(weight_vH.shape[0], vocab_size - axis.rank * weight_vH.shape[0])),",
        "valid=weight_vH.shape[0],",
        "tests/parallel/test_loss.py -k 'smoothing_and_z_loss and 4-torch.float64'",
    ),
    PlantedBug(
        "gradient of the head's input not summed over the vocabulary",
        "parallel/loss.py",
        ("                works.append(all_reduce_async(gradients.dx_MH[part], head.axis))\n"),
        ("                pass\n"),
        "tests/parallel/test_loss.py -k 'smoothing_and_z_loss and 2-torch.float64'",
    ),
    PlantedBug(
        "label in the first column of a slice not picked",
        "ops/cross_entropy.py",
        "inside_M1 = (columns_M1 >= 0) & (columns_M1 < width)",
        "inside_M1 = (columns_M1 > 0) & (columns_M1 < width)",
        "tests/ops/test_cross_entropy.py -k slices_together",
    ),
    PlantedBug(
        "gate and up cut over ranks as one matrix",
        "models/mlp.py",
        ("            chunks=chunks,\n            skip_bias=True,"),
        "            skip_bias=True,",
        "tests/models/test_decoder.py -k 'tensor_parallel_decoder and llama'",
    ),
    PlantedBug(
        "attention dropout alike on all tensor ranks",
        "models/attention/self_attention.py",
        "self.first_head = axis.rank * (model.num_heads // axis.size)",
        "self.first_head = 0",
        "tests/parallel/test_branches.py -k 'two_tensor_ranks and False-0.1'",
    ),
    PlantedBug(
        "slopes of ALiBi by local heads",
        "models/attention/score_bias.py",
        "mine = alibi_slopes(num_heads)[axis.rank * share : (axis.rank + 1) * share]",
        "mine = alibi_slopes(share)",
        "tests/models/test_encoder_decoder.py -k alibi_slopes",
    ),
    PlantedBug(
        "initial values by local index",
        "models/init.py",
        "    intervals = shard.intervals if dim == shard.dim else ((0, shard.shape[dim]),)",
        "    intervals = ((0, shard.local_shape[dim]),)",
        "tests/models/test_init.py -k do_not_depend",
    ),
    PlantedBug(
        "replicated parameters marked as sharded",
        "parallel/shard.py",
        "if shard.dim is not None and sharded_over.size > 1:",
        "if sharded_over.size > 1:",
        "tests/parallel/test_shard.py -k flags",
    ),
    PlantedBug(
        "norm counts replicated parameters on every rank",
        "training/engine/gradients.py",
        "return shard_of(parameter).dim is not None or mesh.tensor.rank == 0",
        "return True",
        "tests/parallel/test_sequence_layouts.py -k 'tp2-sp-zero0'",
    ),
    PlantedBug(
        "dropout of the stream alike on all slices of the sequence",
        "models/block.py",
        "masks = (dropout_keys_B, geometry.stream_positions_Z)",
        "masks = (dropout_keys_B, None)",
        "tests/parallel/test_branches.py -k 'two_tensor_ranks and True-0.1'",
    ),
    PlantedBug(
        "z-loss of a slice of the vocabulary",
        "parallel/loss.py",
        ("            whole.row_max_M,\n            whole.sum_exp_M,\n"),
        ("            whole.row_max_M,\n            whole.sum_exp_M / head.axis.size,\n"),
        "tests/parallel/test_loss.py -k 'smoothing_and_z_loss and 2-torch.float64'",
    ),
]
