"""Every rule that spans fields, in the order in which violations are told.

A rule is one small function of a config that yields the lines of its violations. One that needs
only one field is a bound of that field and stands in its section. The sections know nothing of the
rules: whoever loads a config applies them (roots/config/check.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from roots.config.rules.anomaly import ANOMALY_RULES
from roots.config.rules.checkpoint import CHECKPOINT_RULES, mirror_outlives_the_runs
from roots.config.rules.context import CONTEXT_RULES
from roots.config.rules.data import DATA_RULES
from roots.config.rules.encoder import ENCODER_RULES
from roots.config.rules.evaluation import EVALUATION_RULES
from roots.config.rules.experts import EXPERT_RULES
from roots.config.rules.model import MODEL_RULES
from roots.config.rules.pipeline import PIPELINE_RULES
from roots.config.rules.schedule import SCHEDULE_RULES, scale_floor_below_start
from roots.config.rules.zero import ZERO_RULES
from roots.config.run import RunConfig
from roots.errors import problem

Rule = Callable[[RunConfig], Iterable[str]]

RULES: tuple[Rule, ...] = (
    *MODEL_RULES,
    *EXPERT_RULES,
    *PIPELINE_RULES,
    *ZERO_RULES,
    scale_floor_below_start,
    *CONTEXT_RULES,
    *SCHEDULE_RULES,
    *ENCODER_RULES,
    *DATA_RULES,
    *CHECKPOINT_RULES,
    *EVALUATION_RULES,
    *ANOMALY_RULES,
)


def cross_section_problems(config: RunConfig) -> list[str]:
    """Apply every rule; return all violations."""
    return [line for rule in RULES for line in rule(config)]


def has_training_data(config: RunConfig) -> Iterator[str]:
    """What `roots train` asks of a config besides RULES: something to learn from."""
    if not config.data.train:
        fix = "set data.train to the prefix that `roots preprocess --out PREFIX` wrote"
        yield problem("data.train", [], "must name at least one dataset", fix)


# What is asked of a config by which a run is about to train, besides RULES.
TRAINING_RULES: tuple[Rule, ...] = (has_training_data, mirror_outlives_the_runs)
