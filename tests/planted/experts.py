"""Bugs in mixtures of experts: routing, capacity, router losses, gradients, loads."""

from __future__ import annotations

from tests.planted import PlantedBug

BUGS = [
    PlantedBug(
        "router losses not divided by the micro-batches",
        "training/router_statistics.py",
        "record.scale = loss_scale / self._accumulation",
        "record.scale = loss_scale",
        "tests/training/test_router_statistics.py",
    ),
    PlantedBug(
        "router losses without the loss scale",
        "training/router_statistics.py",
        "record.scale = loss_scale / self._accumulation",
        "record.scale = 1.0 / self._accumulation",
        "tests/training/test_router_statistics.py",
    ),
    PlantedBug(
        "dropped choices get a gradient",
        "models/moe/experts.py",
        (
            "            if kept_Nk is not None:\n"
            "                part_NH = part_NH * kept_Nk[:, choice, None]\n"
        ),
        "",
        "tests/models/moe/test_experts.py",
    ),
    PlantedBug(
        "router probabilities never normalised",
        "models/moe/routing.py",
        (
            "    if moe.normalises:\n"
            "        weights_BTk = weights_BTk / weights_BTk.sum(dim=-1, keepdim=True)\n"
        ),
        "",
        "tests/models/moe/test_routing.py",
    ),
    PlantedBug(
        "last place of an expert stays empty",
        "models/moe/routing.py",
        "return (place_BN <= capacity).view_as(experts_BTk)",
        "return (place_BN < capacity).view_as(experts_BTk)",
        "tests/models/moe/test_routing.py",
    ),
    PlantedBug(
        "capacity rounded down",
        "models/moe/routing.py",
        "capacity = math.ceil(moe.capacity_factor * moe.top_k * length / moe.num_experts)",
        "capacity = int(moe.capacity_factor * moe.top_k * length / moe.num_experts)",
        "tests/models/moe/test_routing.py",
    ),
    PlantedBug(
        "capacity forgets that a token has several experts",
        "models/moe/routing.py",
        "moe.capacity_factor * moe.top_k * length",
        "moe.capacity_factor * length",
        "tests/models/moe/test_routing.py",
    ),
    PlantedBug(
        "balance loss without the number of experts",
        "models/moe/routing.py",
        "return counts_BE.shape[1] * (share_BE * mean_BE).sum(dim=1).mean()",
        "return (share_BE * mean_BE).sum(dim=1).mean()",
        "tests/models/moe/test_routing.py",
    ),
    PlantedBug(
        "z-loss of the mean",
        "models/moe/routing.py",
        "return logits_BTE.logsumexp(dim=-1).square().mean()",
        "return logits_BTE.logsumexp(dim=-1).mean().square()",
        "tests/models/moe/test_routing.py",
    ),
    PlantedBug(
        "bias of shared experts not gated",
        "models/moe/layer.py",
        (
            "        shared_BTH = shared_BTH if bias_H is None else shared_BTH + bias_H\n"
            "        return torch.addcmul(y_BTH, self.shared_gate(x_BTH), shared_BTH), None"
        ),
        "        return torch.addcmul(y_BTH, self.shared_gate(x_BTH), shared_BTH), bias_H",
        "tests/models/moe/test_experts.py",
    ),
    PlantedBug(
        "gate of shared experts not summed over slices",
        "models/moe/layer.py",
        "weight_1H = self.weight if self.apart is None else copy_to(self.weight, self.apart)",
        "weight_1H = self.weight",
        "tests/parallel/test_experts.py -k 'in_fp32 and sp2-gated'",
    ),
    PlantedBug(
        "router not summed over slices of the sequence",
        "models/moe/layer.py",
        "weight_EH = copy_to(self.weight, self.axis)",
        "weight_EH = self.weight",
        "tests/parallel/test_experts.py -k 'in_fp32 and sp2-gated'",
    ),
    PlantedBug(
        "gradient of the expert weights of one tensor rank",
        "models/moe/layer.py",
        "copy_to(routing.weights_BTk, self.axis).flatten(0, 1)",
        "routing.weights_BTk.flatten(0, 1)",
        "tests/parallel/test_experts.py -k 'in_fp32 and tp2-gated'",
    ),
    PlantedBug(
        "experts that several ranks hold are not averaged",
        "training/engine/experts.py",
        "groups._EXPERT_DATA_PARALLEL_GROUP[name] = real_group(mesh.expert_data, mesh)",
        "groups._EXPERT_DATA_PARALLEL_GROUP[name] = real_group(mesh.tensor, mesh)",
        "tests/training/engine/test_experts.py",
    ),
    PlantedBug(
        "router in 16 bits",
        "models/moe/layer.py",
        "return functional.linear(x_BTH.float(), self.weight.float())",
        "return functional.linear(x_BTH, self.weight).float()",
        "tests/models/moe/test_experts.py",
    ),
    PlantedBug(
        "tokens dropped in evaluation",
        "models/moe/layer.py",
        "drops=self.training",
        "drops=True",
        "tests/models/moe/test_experts.py -k dropped_in_evaluation",
    ),
    PlantedBug(
        "recomputed blocks count their loads twice",
        "models/moe/routing.py",
        (
            "        ctx.entry, ctx.record = entry, record\n"
            "        return weights_BTk.view_as(weights_BTk)"
        ),
        (
            "        ctx.entry, ctx.record = entry, record\n"
            "        record.add(entry)\n"
            "        return weights_BTk.view_as(weights_BTk)"
        ),
        "tests/models/moe/test_routing.py",
    ),
    PlantedBug(
        "loads of one context rank",
        "training/router_statistics.py",
        "all_reduce_sum(mesh.replica, found)",
        "all_reduce_sum(mesh.data, found)",
        "tests/training/test_router_statistics.py",
    ),
    PlantedBug(
        "share dropped of the tokens",
        "training/router_statistics.py",
        ("        dropped / choices,\n"),
        ("        dropped / choices.clamp_min(1) * counts_LE.shape[1],\n"),
        "tests/training/test_router_statistics.py",
    ),
    PlantedBug(
        "results of experts added in 16 bits",
        "models/moe/experts.py",
        "y_NH = torch.zeros((len(slot_Nk), rows_MH.shape[1]), device=rows_MH.device)",
        "y_NH = rows_MH.new_zeros((len(slot_Nk), rows_MH.shape[1]))",
        "tests/models/moe/test_experts.py",
    ),
    PlantedBug(
        "gradient of a token's choices added in 16 bits",
        "models/moe/experts.py",
        ("            part_NH = d_rows_MH.index_select(0, slot_Nk[:, choice]).float()\n"),
        ("            part_NH = d_rows_MH.index_select(0, slot_Nk[:, choice])\n"),
        "tests/models/moe/test_experts.py",
    ),
    PlantedBug(
        "axes of experts exchanged",
        "parallel/topology.py",
        "return [ranks[index :: self.expert] for index in range(self.expert)]",
        "return [ranks[i : i + self.expert] for i in range(0, len(ranks), self.expert)]",
        "tests/parallel/test_topology.py -k expert",
    ),
    PlantedBug(
        "experts in the blocks before those of the rule",
        "config/model.py",
        "(layer + 1) % self.moe.every == 0",
        "layer % self.moe.every == 0",
        "tests/config/test_model.py",
    ),
    PlantedBug(
        "weights of one expert normalised to one",
        "config/moe.py",
        "return self.top_k > 1 if self.normalise_weights is None else self.normalise_weights",
        "return True if self.normalise_weights is None else self.normalise_weights",
        "tests/config/test_model.py",
    ),
    PlantedBug(
        "balance and z-loss weights exchanged",
        "models/moe/routing.py",
        "loss = moe.balance_loss * balance + moe.z_loss * z",
        "loss = moe.z_loss * balance + moe.balance_loss * z",
        "tests/models/moe/test_routing.py",
    ),
]
