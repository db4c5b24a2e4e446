"""Every legal combination of the parallel axes, and few that cover all pairs or more of values.

The config's own rules decide what is legal, so that an axis joins by its values in AXES, and a
model by its fields in MODELS.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from roots.config import RunConfig
from roots.config.batch import plan_batch
from roots.errors import RootsError
from tests.helpers.runs import small_config

# Fields of `parallel`, in the order in which a row shows them; first values are "off".
AXES: dict[str, tuple[Any, ...]] = {
    "tensor": (1, 2, 4),
    "sequence": (False, True),
    "context": (1, 2),
    "context_method": ("ulysses", "ring"),
    "pipeline": (1, 2, 4),
    "pipeline_schedule": ("1f1b", "dualpipev"),
    "expert": (1, 2),
    "zero_stage": (0, 1, 2, 3),
    "recompute": ("none", "selective", "full"),
}
# What has no effect while another axis is off.
NEEDS = {"context_method": "context", "pipeline_schedule": "pipeline"}
RANKS = (1, 2, 4, 8)
MODELS: dict[str, dict[str, Any]] = {
    "decoder": {
        "num_layers": 8,
        "num_kv_heads": 4,
        "dropout": 0.1,
        "position": "rotary",
        "norm": "rms_norm",
        "activation": "swiglu",
    },
    "experts": {
        "num_layers": 4,
        "num_kv_heads": 4,
        "dropout": 0.1,
        "position": "rotary",
        "norm": "rms_norm",
        "activation": "swiglu",
        "moe": {"num_experts": 4, "ffn_hidden_size": 16, "num_shared_experts": 1, "z_loss": 1e-3},
    },
    "encoder_decoder": {
        "architecture": "encoder_decoder",
        "num_layers": 4,
        "num_encoder_layers": 4,
        "dropout": 0.1,
        "position": "sinusoidal",
        "source_length": 24,
        # Beyond the tokens of the data: the last ids stand for hidden spans.
        "vocab_size": 64,
    },
}
STEPS = 10


@dataclass(frozen=True)
class Combination:
    """One row of the table: a model, a number of ranks and a value of every axis."""

    model: str
    ranks: int
    values: tuple[Any, ...]

    @property
    def parallel(self) -> dict[str, Any]:
        """The fields of `parallel`."""
        return dict(zip(AXES, self.values, strict=True))

    @property
    def idle(self) -> bool:
        """Whether a value has no effect, so that the row is a twin of the one with it off."""
        return any(
            self.parallel[name] != AXES[name][0] and self.parallel[needed] == AXES[needed][0]
            for name, needed in NEEDS.items()
        )

    @property
    def name(self) -> str:
        """What differs from off: tensor2-zero_stage1 on so many ranks."""
        parts = [
            f"{name}={value}".replace("=True", "")
            for name, value in self.parallel.items()
            if value != AXES[name][0]
        ]
        return ",".join([self.model, f"{self.ranks} ranks", *parts])

    def choices(self, strength: int) -> set[tuple[Any, ...]]:
        """Every `strength` choices that this row has together."""
        chosen = [("model", self.model), ("ranks", self.ranks), *self.parallel.items()]
        return set(combinations(chosen, strength))


def config_of(prefix: Path, model: str, parallel: Mapping[str, Any], **sections: Any) -> RunConfig:
    """The run of a row: clipping bites, dropout is on, heads are grouped, the embedding is tied.

    The learning rate is small, because gradients are compared after as many as nine updates: with
    1e-2 the training itself makes 2e-5 of a difference of rounding, with 1e-3 about 1e-6. Adam
    divides a gradient by its own size, so that in biases, which start at zero and are nothing but
    the sum of updates, a gradient that is nearly zero becomes noise: epsilon 1e-4 dampens it.
    """
    ops = {"attention": "reference"} if parallel.get("recompute") == "selective" else {}
    return small_config(
        prefix,
        prefix.parent,
        model=MODELS[model],
        # What a test trains is so small that ZeRO-3 would keep all of it whole.
        parallel={"zero_persistence_threshold": 0, **parallel},
        training={"steps": STEPS, "global_batch_size": 16, "gradient_clipping": 0.5},
        optimizer={"learning_rate": 1e-3, "epsilon": 1e-4, "implementation": "torch"},
        ops=ops,
        **sections,
    )


def reference_of(prefix: Path, model: str) -> RunConfig:
    """The run on one process that all rows of a model are compared with."""
    return config_of(prefix, model, {"zero_stage": 0})


def legal(prefix: Path) -> list[Combination]:
    """Every combination that the config accepts, the small ones first."""
    return list(_legal(prefix))


def _legal(prefix: Path) -> Iterator[Combination]:
    for ranks, model, values in product(RANKS, MODELS, product(*AXES.values())):
        row = Combination(model, ranks, values)
        if row.idle:
            continue
        try:
            plan_batch(config_of(prefix, model, row.parallel), ranks)
        except RootsError:
            continue
        yield row


def covering(rows: Sequence[Combination], strength: int = 2) -> list[Combination]:
    """Few of `rows` that together have every pair (triple, ...) of choices that any of them has.

    Greedy: ever the row with the most new ones for the processes it takes.
    """
    missing = {row: row.choices(strength) for row in rows}
    wanted = set().union(*missing.values())
    chosen = []
    while wanted:
        best = max(missing, key=lambda row: len(missing[row]) / (2 + row.ranks))
        chosen.append(best)
        covered = missing[best]
        wanted -= covered
        missing = {row: rest - covered for row, rest in missing.items()}
    return chosen
