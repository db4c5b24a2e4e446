"""The typed config of a run: the only author of what the engine is told. Never imports torch."""

from roots.config.batch import BatchPlan, plan_batch
from roots.config.load import dump_config, load_config, parse_config
from roots.config.run import RunConfig

__all__ = ["BatchPlan", "RunConfig", "dump_config", "load_config", "parse_config", "plan_batch"]
