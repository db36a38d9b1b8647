"""Models as people have them, tiny, and the way each is tried: planned in little more memory than it needs at least, then verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from autoplan.cli.verify import SeededModel, verified
from autoplan.cost.hardware import load_hardware
from autoplan.load import Built, Target, build_meta, load_target
from autoplan.placement import Mesh, parse_mesh
from autoplan.plan.schema import Options, Plan
from autoplan.planner.pipeline import PlanRequest, capture_for, plan_module
from autoplan.planner.remedies import problem_of
from autoplan.planner.solve import smallest_memory
from autoplan.runtime.verify.pool import WorkerPool
from autoplan.runtime.verify.results import Verification

GIB = 2**30
BATCH, SEQ = 4, 32
ROOM = 1.2  # of the smallest memory that a plan needs
TIME_LIMIT_S = 60.0
NEVER_GATHER = {"params": "all", "gather": "never"}

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_HEADS = {"num_attention_heads": 4, "hidden_size": 64, "num_hidden_layers": 2}
_ENCODER = {**_HEADS, "intermediate_size": 128}
_TEXT = {**_ENCODER, "vocab_size": 128, "max_position_embeddings": 64, **_TOKENS}
_LLAMA = {**_TEXT, "num_key_value_heads": 2}
_IMAGES = {"image_size": 32, "num_labels": 8}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 128, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2}
_OPT = {**_HEADS, "ffn_dim": 128, "vocab_size": 128, "max_position_embeddings": 64, "word_embed_proj_dim": 64, **_TOKENS}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"architectures": ["GPT2LMHeadModel"], **_GPT2},
    "llama": {"architectures": ["LlamaForCausalLM"], **_LLAMA},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 16, **_LLAMA},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], **_LLAMA},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16, **_LLAMA},
    "phi3": {"architectures": ["Phi3ForCausalLM"], **_LLAMA},
    "opt": {"architectures": ["OPTForCausalLM"], **_OPT},
    "gpt_neox": {"architectures": ["GPTNeoXForCausalLM"], **_TEXT},
    "gemma2": {"architectures": ["Gemma2ForCausalLM"], "head_dim": 16, **_LLAMA},
    "bert": {"architectures": ["BertForMaskedLM"], **_TEXT},
    "vit": {"architectures": ["ViTForImageClassification"], "patch_size": 8, **_ENCODER, **_IMAGES},
    "t5": {"architectures": ["T5ForConditionalGeneration"], **_T5},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, **_EXPERTS, **_LLAMA},
    "resnet": {"architectures": ["ResNetForImageClassification"], "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic", **_IMAGES},
}  # fmt: skip
DENSE_TRANSFORMERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "phi3", "opt", "gpt_neox", "gemma2", "bert", "vit", "t5")


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan in little memory, and what verifies it."""

    model: SeededModel
    plan: Plan

    def verified(self, pool: WorkerPool, random_plans: int) -> Verification:
        """The plan's run, and those of random plans, against one device."""
        return verified(self.plan, self.model, random_plans=random_plans, pool=pool)


def config_target(folder: Path, name: str) -> Target:
    """The architecture `name` as a target: its config.json in `folder`."""
    file = folder / name / "config.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"model_type": name, **CONFIGS[name]}))
    return load_target(str(file), {}, batch=BATCH, seq=SEQ)


def tight_plan(target: Target, mesh: str, *pins: Mapping[str, Any]) -> Planned:
    """The plan on links that cost nothing, in 1.2 times the least that any plan under the pins needs which recomputes nothing."""
    model, built = SeededModel.of(target, "train", 0), build_meta(target)
    least = smallest_bytes(target, built, parse_mesh(mesh), pins)
    request = _request(parse_mesh(mesh), pins, ROOM * least / GIB, target)
    return Planned(model, plan_module(built.module, built.args, dict(built.kwargs), request).plan)


def smallest_bytes(target: Target, built: Built, mesh: Mesh, pins: tuple[Mapping[str, Any], ...]) -> int:
    """The memory that the smallest plan needs which recomputes nothing."""
    request = _request(mesh, pins, 1 / GIB, target)
    graph = capture_for(built.module, built.args, dict(built.kwargs), request.options)
    problem = problem_of(graph, request).problem
    found = smallest_memory(problem, TIME_LIMIT_S)
    assert found is not None
    return found.cost * problem.unit_bytes


def _request(mesh: Mesh, pins: tuple[Mapping[str, Any], ...], memory_gib: float, target: Target) -> PlanRequest:
    options = Options(precision="fp32", memory_gib=memory_gib)
    settings = dict(target.settings)
    return PlanRequest(mesh, _hardware(), options, target.relative_to("."), settings, pins=pins, time_limit_s=TIME_LIMIT_S)


@cache
def _hardware() -> Any:
    return load_hardware("test-free-links")
