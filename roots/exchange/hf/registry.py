"""Which architecture a config.json names, and which one can express a model of ROOTS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from roots.config.model import ModelConfig
from roots.config.unread_fields import without_idle_fields
from roots.errors import RootsError, problem
from roots.exchange.hf.bert import BERT
from roots.exchange.hf.config_map import Fields, Refusal
from roots.exchange.hf.family import Family
from roots.exchange.hf.gpt2 import GPT2
from roots.exchange.hf.gpt_neox import GPT_NEOX
from roots.exchange.hf.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from roots.exchange.hf.mixtral import MIXTRAL
from roots.exchange.hf.qwen_moe import QWEN2_MOE, QWEN3_MOE
from roots.exchange.hf.t5 import T5

# In the order in which an export tries them.
FAMILIES: tuple[Family, ...] = (
    *(GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3),
    *(MIXTRAL, QWEN3_MOE, QWEN2_MOE),
    *(T5, BERT),
)


def family_of(tree: dict[str, Any], path: Path) -> Family:
    """The architecture that the config.json at `path` names. Raises RootsError."""
    architectures = tree.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(n, str) for n in architectures):
        rule, fix = "must be a list of names", "copy it again from where the model comes from"
        raise RootsError(problem(f"architectures of {path}", architectures, rule, fix))
    _refuse_quantised(tree, path)
    for family in FAMILIES:
        # A bare body has no architecture of its own, as the files of the first GPT-2 have not.
        bare = not architectures or family.architecture.startswith(
            architectures[0][: -len("Model")]
        )
        if {family.architecture, *family.also} & set(architectures):
            return family
        if family.model_type == tree.get("model_type") and bare:
            return family
    known = ", ".join(family.architecture for family in FAMILIES)
    value = architectures[0] if architectures else tree.get("model_type")
    rule = f"must be one of {known}"
    fix = "ROOTS has no map for another architecture"
    raise RootsError(problem(f"architecture of {path}", value, rule, fix))


def _refuse_quantised(tree: dict[str, Any], path: Path) -> None:
    """Packed weights have other names, shapes and dtypes: one line instead of one for each."""
    for key in ("quantization_config", "compression_config"):
        section = tree.get(key)
        if section:
            method = section.get("quant_method") if isinstance(section, dict) else section
            if method is None and isinstance(section, dict):
                # bitsandbytes of older files only says how many bits it loads in.
                method = next((name for name in section if name.startswith("load_in_")), "unknown")
            rule = f"unquantised weights are needed ({path})"
            fix = "import the model that was quantised, or save it dequantised by transformers"
            raise RootsError(f"{key}.quant_method={method}: {rule}; {fix}")


def read_model(family: Family, tree: dict[str, Any], path: Path) -> Fields:
    """The fields of `model` from the config.json at `path`.

    Raises RootsError with every key that ROOTS cannot express.
    """
    fields, refusals = family.read_config(tree)
    if refusals:
        raise RootsError(*(_line(refusal, f"{refusal.key} of {path}") for refusal in refusals))
    return fields


def choose_family(model: ModelConfig) -> tuple[Family, Fields]:
    """The first architecture that expresses `model`, and its config.json.

    Those with experts are for models with experts, and the others for the models of their kind.
    Fields that `model` does not read keep it from none. Raises RootsError with what keeps it from
    the nearest one.
    """
    plain = without_idle_fields(model)
    nearest: tuple[Family, list[Refusal]] | None = None
    for family in _of_its_kind(plain):
        tree, refusals = family.write_config(plain)
        if not refusals:
            return family, tree
        if nearest is None or len(refusals) < len(nearest[1]):
            nearest = (family, refusals)
    assert nearest is not None
    name = nearest[0].architecture
    raise RootsError(*(_line(each, each.key, f" for {name}") for each in nearest[1]))


def _of_its_kind(model: ModelConfig) -> list[Family]:
    """The architectures whose refusals are about `model`, and do not say that it is another."""
    if model.moe.num_experts:
        return [family for family in FAMILIES if family.has_experts]
    return [
        family
        for family in FAMILIES
        if not family.has_experts
        and family.fields.get("architecture", "decoder") == model.architecture
    ]


def _line(refusal: Refusal, subject: str, where: str = "") -> str:
    return problem(subject, refusal.value, f"{refusal.rule}{where}", refusal.fix)
