"""A Hugging Face `config.json` as a factory: the class it names, its inputs and its labels. Needs `autoplan[hf]`.

Nothing is fetched: the configuration is read from the file and no weights are needed.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoplan.errors import TargetError, UsageError
from autoplan.plan.patterns import natural_key

EXAMPLE_SIZE = {"batch": 8, "seq": 512}  # where --batch and --seq say nothing


def hugging_face_factory(path: Path, mode: str = "train") -> Callable[..., Any]:
    """A factory whose settings are `batch`, `seq` and every entry of the configuration; raises TargetError."""
    entries = _read(path)
    transformers = _import_transformers(path)
    _config(transformers, path, entries)  # a malformed file is an error now, not when the model is built

    def factory(*, batch: int, seq: int, **changes: Any) -> tuple[Any, tuple[()], dict[str, Any]]:
        config = _config(transformers, path, entries | changes)
        model = _model(transformers, config, path).train(mode == "train")
        return model, (), _inputs(model, config, batch, seq, labels=mode == "train")

    factory.__signature__ = _signature(_config(transformers, path, entries))  # type: ignore[attr-defined]
    return factory


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise TargetError(f"{path.name} is not JSON: {error}", where=str(path)) from error
    if not isinstance(entries, dict) or "model_type" not in entries:
        raise TargetError(f"{path.name} is no Hugging Face configuration: it has no model_type", where=str(path))
    return entries


def _import_transformers(path: Path) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError as error:
        raise TargetError(f"{path.name} needs transformers, which is not installed", next_step="pip install 'autoplan[hf]'") from error
    return transformers


def _config(transformers: Any, path: Path, entries: Mapping[str, Any]) -> Any:
    kind = entries["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        step = f"transformers {transformers.__version__} knows {len(transformers.CONFIG_MAPPING)} others; a model with code of its own is given as file.py:factory"
        raise TargetError(f"{path.name}: unknown model_type {kind!r}", where=str(path), next_step=step)
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict(dict(entries))
    except Exception as error:  # a validator of that configuration class
        raise TargetError(f"{path.name}: {type(error).__name__}: {error}", where=str(path)) from error
    config.use_cache = False
    return config


def _signature(config: Any) -> inspect.Signature:
    """`batch`, `seq` and the configuration's scalars, each with its value as the default: `--set` is checked against it."""
    defaults: dict[str, Any] = dict(EXAMPLE_SIZE)
    hidden = {"transformers_version", "_name_or_path", "architectures", "model_type", "use_cache", "return_dict", "dtype", "torch_dtype"}
    defaults |= {k: v for k, v in config.to_dict().items() if k.isidentifier() and k not in hidden and k not in defaults}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([inspect.Parameter(key, keyword, default=value) for key, value in defaults.items()])


def _model(transformers: Any, config: Any, path: Path) -> Any:
    model_class = _model_class(transformers, config, path)
    try:
        config._attn_implementation = "sdpa"
        return model_class(config)
    except (ValueError, ImportError):  # the class has no such attention
        config._attn_implementation = "eager"
        return model_class(config)


_TASKS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_CLASSIFICATION", "SEQUENCE_CLASSIFICATION")


def _model_class(transformers: Any, config: Any, path: Path) -> Any:
    """The class `architectures` names, else the class for the first task this kind of model has."""
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
        raise TargetError(f"{path.name}: transformers {transformers.__version__} has no class {name!r}", where=f"architectures of {path}")
    for task in _TASKS:
        mapping = getattr(transformers, f"MODEL_FOR_{task}_MAPPING", {})
        if type(config) in mapping:
            return mapping[type(config)]
    raise TargetError(f"{path.name} names no architecture", where=str(path), next_step='add "architectures": ["…ForCausalLM"]')


def _inputs(model: Any, config: Any, batch: int, seq: int, *, labels: bool) -> dict[str, torch.Tensor]:
    """The class's main input and, for training, the labels of its task, as keyword arguments."""
    inputs = {model.main_input_name: _main_input(model, config, batch, seq)}
    parameters = inspect.signature(model.forward).parameters
    if labels and "labels" in parameters:
        inputs["labels"] = _labels(model, config, batch, seq)
    elif labels and "start_positions" in parameters:
        inputs |= {name: torch.randint(0, seq, (batch,)) for name in ("start_positions", "end_positions")}
    elif "decoder_input_ids" in parameters:
        inputs["decoder_input_ids"] = torch.randint(0, _vocabulary(config), (batch, seq))
    return inputs


def _main_input(model: Any, config: Any, batch: int, seq: int) -> torch.Tensor:
    name = model.main_input_name
    if name == "input_ids":
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        if limit and seq > limit:
            raise UsageError(f"--seq {seq} is longer than the model's {limit} positions", next_step=f"--seq {limit} or less")
        return torch.randint(0, _vocabulary(config), (batch, seq))
    if name == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return torch.randn(batch, getattr(vision, "num_channels", 3), height, width)
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        return torch.randn(batch, config.num_mel_bins, 2 * getattr(config, "max_source_positions", seq))
    raise TargetError(
        f"{type(model).__name__}: no example for its main input {name!r}",
        next_step="write a factory: file.py with build() -> (module, args)",
    )


def _labels(model: Any, config: Any, batch: int, seq: int) -> torch.Tensor:
    kind = type(model).__name__
    if kind.endswith(("SequenceClassification", "ImageClassification", "MultipleChoice")):
        return torch.randint(0, config.num_labels, (batch,))
    if kind.endswith("TokenClassification"):
        return torch.randint(0, config.num_labels, (batch, seq))
    return torch.randint(0, _vocabulary(config), (batch, seq))


def _vocabulary(config: Any) -> int:
    return config.get_text_config().vocab_size


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of a model as transformers makes it of published ones, `parts` being their names: stacked or joined along `dim`."""

    parts: tuple[str | Made, ...]
    dim: int
    stacks: bool


def published_form(module: nn.Module, names: Iterable[str]) -> dict[str, str | Made]:
    """What transformers makes of the tensors `names` of a file when it reads them into `module`: by name, which or of which.

    Many models are published under other names than those of the classes that transformers has now, and a mixture of experts
    one tensor for each expert. Empty for a module that is not of transformers; what is made by other means stays as it is.
    """
    if "transformers" not in sys.modules:
        return {}
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key
    except ImportError:  # of a version whose classes have the published names
        return {}
    if not isinstance(module, PreTrainedModel):
        return {}
    conversions = get_model_conversion_mapping(module)
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    renamings = [each for each in conversions if not isinstance(each, WeightConverter)]
    sources: dict[str, dict[str | None, list[str]]] = {}
    for name in sorted(names, key=natural_key):
        target, pattern = rename_source_key(name, renamings, converters)
        sources.setdefault(target, {}).setdefault(pattern, []).append(name)
    converter_of = {pattern: each for each in converters for pattern in each.source_patterns}
    made: dict[str, str | Made] = {}
    for target, found in sources.items():
        how = _made(converter_of.get(next(iter(found))), found)
        made |= {target: how} if how is not None else {name: name for names in found.values() for name in names}
    return made


def _made(converter: Any, found: Mapping[str | None, Sequence[str]]) -> str | Made | None:
    """What a converter of transformers makes of the names that each of its patterns has found."""
    tensors: list[list[str | Made]] = [list(names) for names in found.values()]
    if converter is not None:
        tensors = [list(found[pattern]) for pattern in converter.source_patterns if pattern in found]
    for operation in converter.operations if converter is not None else ():
        kind = type(operation).__name__
        if kind == "MergeModulelist":
            tensors = [[Made(tuple(parts), operation.dim, stacks=True)] for parts in tensors]
        elif kind == "Concatenate":
            tensors = [[Made(tuple(part for parts in tensors for part in parts), operation.dim, stacks=False)]]
        else:
            return None
    return tensors[0][0] if len(tensors) == 1 and len(tensors[0]) == 1 else None
