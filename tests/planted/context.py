"""Bugs in context parallelism: the ring, Ulysses, positions, weights and masks of a part."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "loss weights of context ranks not multiplied",
        "training/micro_batch.py",
        "place.take(batch.loss_weights_BT, 1) * place.context.size",
        "place.take(batch.loss_weights_BT, 1)",
        "tests/training/test_micro_batch.py",
    ),
    PlantedBug(
        "ring walked the other way",
        "parallel/ring.py",
        "return (self.axis.rank - step) % self.axis.size",
        "return (self.axis.rank + step) % self.axis.size",
        "tests/parallel/test_ring.py -k 4",
    ),
    PlantedBug(
        "window of the ring one too wide",
        "parallel/ring.py",
        "lo_BT = torch.maximum(lo_BT, positions_T - window + 1)",
        "lo_BT = torch.maximum(lo_BT, positions_T - window)",
        "tests/parallel/test_ring.py -k 2",
    ),
    PlantedBug(
        "window forgotten by the ring",
        "parallel/ring.py",
        ("    if window > 0:\n        lo_BT = torch.maximum(lo_BT, positions_T - window + 1)\n"),
        "",
        "tests/parallel/test_ring.py -k 2",
    ),
    PlantedBug(
        "documents always told apart in the ring",
        "parallel/ring.py",
        "document_starts_BS[:, positions_T] * int(separate)",
        "document_starts_BS[:, positions_T]",
        "tests/parallel/test_ring.py -k 2",
    ),
    PlantedBug(
        "attention_scale forgotten under the ring",
        "models/attention/self_attention.py",
        ("                q_BTnD = q_BTnD * (self.scale * math.sqrt(self.head_size))\n"),
        ("                pass\n"),
        "tests/parallel/test_context_decoder.py -k 'ring and attention_scale'",
    ),
    PlantedBug(
        "attention_scale multiplied by the ring's own",
        "models/attention/self_attention.py",
        "q_BTnD = q_BTnD * (self.scale * math.sqrt(self.head_size))",
        "q_BTnD = q_BTnD * self.scale",
        "tests/parallel/test_context_decoder.py -k 'ring and attention_scale'",
    ),
    PlantedBug(
        "attention dropout repeats over context ranks",
        "models/attention/self_attention.py",
        ("            first_head += context.rank * (q_BTnD.shape[2] // context.size)\n"),
        ("            pass\n"),
        "tests/parallel/test_context_decoder.py -k 'ulysses and attention and dropout'",
    ),
    PlantedBug(
        "key heads tiled instead of repeated under Ulysses",
        "parallel/ulysses.py",
        "(x.repeat_interleave(repeats, dim=2) for x in (k_BTkD, v_BTkD))",
        "(x.repeat(1, 1, repeats, 1) for x in (k_BTkD, v_BTkD))",
        "tests/parallel/test_ulysses.py -k 2",
    ),
    PlantedBug(
        "window forgotten under Ulysses",
        "models/attention/self_attention.py",
        ("            window=self.window,\n"),
        ("            window=self.window if context is None else 0,\n"),
        "tests/parallel/test_context_decoder.py -k 'ulysses and window'",
    ),
    PlantedBug(
        "attention_scale forgotten under Ulysses",
        "models/attention/self_attention.py",
        (
            "            scale=self.scale,\n"
            "            dropout=self._dropout(dropout_keys_B, first_head),"
        ),
        (
            "            scale=self.scale if context is None else None,\n"
            "            dropout=self._dropout(dropout_keys_B, first_head),"
        ),
        "tests/parallel/test_context_decoder.py -k 'ulysses and attention_scale'",
    ),
    PlantedBug(
        "positions restart on every context rank",
        "models/attention/geometry.py",
        "return geometry._replace(cos=cos[positions_T], sin=sin[positions_T])",
        "return geometry._replace(cos=cos, sin=sin)",
        "tests/parallel/test_context_decoder.py -k 'ring and rotary'",
    ),
    PlantedBug(
        "document starts of the wrong tokens on a context rank",
        "models/attention/geometry.py",
        "return (here_T - document_starts_BT[:, here_T]).clamp_min(0) if reset else here_T",
        "return (here_T - document_starts_BT[:, : len(here_T)]).clamp_min(0) if reset else here_T",
        "tests/parallel/test_context_decoder.py -k 'ring and restart'",
    ),
    PlantedBug(
        "balance loss counts the tokens of one context rank",
        "models/moe/routing.py",
        "balance = balance_loss(logits_BTE, all_reduce_sum(context, counts_BE))",
        "balance = balance_loss(logits_BTE, counts_BE)",
        "tests/parallel/test_context_decoder.py -k 'ulysses and router'",
    ),
    PlantedBug(
        "embedding dropout alike on context ranks",
        "models/embedding.py",
        ("            positions_T=stream_positions_T,\n"),
        "",
        "tests/parallel/test_context_decoder.py -k 'ulysses and learned and dropout'",
    ),
    PlantedBug(
        "loss averaged over the data axis alone",
        "training/engine/step.py",
        "        return all_reduce_mean(self.mesh.replica, self._own_loss())",
        "        return all_reduce_mean(self.mesh.data, self._own_loss())",
        "tests/parallel/test_sequence_layouts.py -k 'cp2-ulysses and not (tp2 or dp2 or pp2)'",
    ),
    PlantedBug(
        "gradients of keys travel round the ring in 16 bits",
        "parallel/ring.py",
        "dkv = torch.stack(block_dkv).to(wide)",
        "dkv = torch.stack(block_dkv)",
        "tests/parallel/test_ring.py -k 2",
    ),
    PlantedBug(
        "log-sum-exp of the last block kept",
        "parallel/ring.py",
        "return o_BTnD * old + block_o_BTnD * new, whole_BnT",
        "return o_BTnD * old + block_o_BTnD * new, torch.maximum(lse_BnT, block_lse_BnT)",
        "tests/parallel/test_ring.py -k 2",
    ),
    PlantedBug(
        "gradients averaged over the data axis alone",
        "parallel/mpu.py",
        "return self._group(self._mesh.replica)",
        "return self._group(self._mesh.data)",
        "tests/parallel/test_mpu.py",
    ),
    PlantedBug(
        "batch of DeepSpeed without the context ranks",
        "training/engine/deepspeed_json.py",
        '"train_batch_size": plan.global_batch_size * config.parallel.context,',
        '"train_batch_size": plan.global_batch_size,',
        "tests/training/engine/test_deepspeed_json.py",
    ),
]
