"""Which tensor of a file is which of a module."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from torch import Tensor, nn

from autoplan.errors import PlanError
from autoplan.runtime.storage.differences import Shapes, differences
from autoplan.runtime.storage.states import persistent_buffers

Rename = Callable[[str], str | None]
_MADE_AGAIN = ("rotary_emb.inv_freq", "position_ids")  # buffers that files of older transformers hold, and models now make


def matched(module: nn.Module, found: Shapes, where: str, rename: Rename | None = None) -> dict[str, str]:
    """For each parameter and persistent buffer of the module the name that it has in a file of tensors with these shapes.

    Names agree, or do so under one prefix that all names of either side have or lack (`model.`, `transformer.`), as files of a
    model without its head have it. Tied parameters need to be there under one of their names. Raises PlanError that lists what
    is missing, what is too much and what has another shape.
    """
    own = {name: tuple(tensor.shape) for name, tensor in whole_tensors(module).items()}
    first = first_names(module)
    names = {name: name if rename is None else rename(name) for name in found}
    given = {new: name for name, new in names.items() if new is not None}
    is_taken = _taken(module)
    readings = [{name: source for name, source in reading.items() if is_taken(name)} for reading in _readings(first, given)]
    best = min(readings, key=lambda reading: len({first.get(name, name) for name in reading} ^ own.keys()))
    source: dict[str, str] = {}
    for name in sorted(best, key=lambda name: first.get(name, name) != name):  # a first name is taken before an alias
        source.setdefault(first.get(name, name), best[name])
    if problems := differences(own, {name: found[given_name] for name, given_name in source.items()}):
        raise PlanError("\n".join(["the weights are not this model's", *problems]), where=where)
    return source


def whole_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a full state dict of the module holds: parameters, tied ones once, and persistent buffers."""
    return {**dict(module.named_parameters()), **persistent_buffers(module)}


def first_names(module: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, aliases of tied ones among them, the first that it has."""
    first: dict[int, str] = {}
    everything = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in everything}


def _readings(own: Collection[str], given: Mapping[str, str]) -> list[dict[str, str]]:
    """The names of a file as they are, with one more first segment, or with one less; `given` maps them to those in the file."""
    more = dict.fromkeys(name.partition(".")[0] for name in own)
    less = dict.fromkeys(name.partition(".")[0] for name in given)
    return [
        dict(given),
        *({name if name in own else f"{segment}.{name}": source for name, source in given.items()} for segment in more),
        *({name.removeprefix(f"{segment}."): source for name, source in given.items()} for segment in less),
    ]


def _taken(module: nn.Module) -> Callable[[str], bool]:
    """Whether a tensor of a name counts: not buffers that the module makes itself, nor what its class says that files may hold.

    Such a pattern of GPT-2's, `attn.bias`, is also found in `attn.c_attn.bias`, which is a parameter.
    """
    kept = {id(buffer) for buffer in persistent_buffers(module).values()}
    made = {name for name, buffer in module.named_buffers(remove_duplicate=False) if id(buffer) not in kept}
    again = tuple(end for end in _MADE_AGAIN if any(name.endswith(end) for name in made))
    patterns = {pattern for owner in module.modules() for pattern in getattr(owner, "_keys_to_ignore_on_load_unexpected", None) or ()}
    own = first_names(module).keys() - made
    return lambda name: name in own or not (name in made or name.endswith(again) or any(re.search(pattern, name) for pattern in patterns))
