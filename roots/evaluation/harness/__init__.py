"""The tasks of lm_eval (EleutherAI's harness) on ROOTS' own checkpoints."""
