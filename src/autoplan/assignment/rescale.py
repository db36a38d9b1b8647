"""A plan's decisions for the same model at another size: fewer layers, smaller dims, another batch.

That is how the decisions of an 8B plan are proved on a laptop. Lines keep what they decide; names, counts and shapes are those
of the other graph. Blocks map first to first, last to last and in between in proportion. Groups of grouped shards that stem
from a batch or a head count (`S(0,8)`) follow the sizes of the inputs and parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

from autoplan.assignment.names import block_of, input_name
from autoplan.graph.blocks import find_blocks, foldable_prefixes
from autoplan.graph.digest import graph_digest
from autoplan.graph.ir import Graph
from autoplan.placement import Placements, Shard
from autoplan.plan.patterns import collapse, expand, match, parse_pattern
from autoplan.plan.schema import ParamLine, Plan, RecomputeLine, ReshardEntry, Uses
from autoplan.rules.hints import group_hints

Line = TypeVar("Line")
_Offer = tuple[frozenset[int], bool]
_GROUPED = re.compile(r"S\((\d+),(\d+)\)")


def rescale(plan: Plan, graph: Graph) -> Plan:
    """`plan` with its lines rewritten for `graph`; what does not resolve there is left for `decode` to say."""
    sizes = _Sizes.of(plan, graph)
    values = {value.address: value for value in graph.values}
    shapes = {parameter.fqn: graph.values[parameter.value].shape for parameter in graph.parameters}
    buffers = {fqn: graph.values[value].shape for fqn, value in graph.buffers.items()}
    inputs = {input_name(graph, value): graph.values[value].shape for value in graph.inputs}
    groups = _Groups(plan, graph, sizes)
    return replace(
        plan,
        model=replace(plan.model, graph=graph_digest(graph), parameters=sum(_numel(shape) for shape in shapes.values())),
        inputs={name: replace(line, shape=inputs.get(name, line.shape)) for name, line in plan.inputs.items()},
        params=_rewritten(
            plan.params,
            shapes,
            sizes,
            lambda name, line: replace(line, shape=shapes[name], store=groups.at(name, line.store), use=_use(line, name, groups)),
        ),
        buffers=_rewritten(plan.buffers, buffers, sizes, lambda name, line: replace(line, shape=buffers[name])),
        ops=_rewritten(
            plan.ops,
            graph.by_address,
            sizes,
            lambda name, line: replace(line, row=line.row and groups.in_text(name, line.row)),
            execution_order=True,
        ),
        reshard=_rewritten(
            plan.reshard,
            values,
            sizes,
            lambda name, entries: tuple(_entry(entry, name, sizes, groups) for entry in entries),
            execution_order=True,
        ),
        gather=_rewritten(plan.gather, _gatherable(graph, sizes.prefixes), sizes, lambda _, line: line),
        recompute={pattern: _recompute(line, pattern.rpartition(".")[0], sizes) for pattern, line in plan.recompute.items()},
    )


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _use(line: ParamLine, name: str, groups: _Groups) -> Uses:
    if isinstance(line.use, Mapping):
        return {reader: groups.at(name, place) for reader, place in line.use.items()}
    return groups.at(name, line.use)


def _entry(entry: ReshardEntry, name: str, sizes: _Sizes, groups: _Groups) -> ReshardEntry:
    readers = tuple(dict.fromkeys(reader for pattern in entry.for_ for reader in sizes.patterns(pattern)))
    return replace(entry, from_=groups.at(name, entry.from_), to=groups.at(name, entry.to), for_=readers)


def _recompute(line: RecomputeLine, prefix: str, sizes: _Sizes) -> RecomputeLine:
    """The copies whose twins recompute: what is gathered again for these is what the plan's `gather` lines say."""
    copies = sizes.copies(prefix)
    return replace(line, blocks=sum(sizes.there(prefix, index) < line.blocks for index in range(copies)), of=copies)


def _gatherable(graph: Graph, prefixes: Collection[str]) -> list[str]:
    """Names that a `gather` line may have: parameters, and the blocks they are in."""
    names = [parameter.fqn for parameter in graph.parameters]
    return [*names, *dict.fromkeys(block for name in names if (block := block_of(name, prefixes)))]


def _rewritten(
    lines: Mapping[str, Line], names: Collection[str], sizes: _Sizes, fit: Callable[[str, Line], Line], *, execution_order: bool = False
) -> dict[str, Line]:
    """The lines that hold for `names` of the other graph, each name asking for the line of its twin in the plan's own model."""
    found = {}
    for name in names:
        twin = sizes.twin(name)
        line = _line(lines, twin)
        if line is not None:
            found[name] = fit(name, line)
    keys = {name: repr(_uncounted(line)) for name, line in found.items()}
    folds = collapse(keys, sizes.prefixes, existing=names, execution_order=execution_order)
    return {pattern: _counted(found[fold.members[0]], fold.count) for pattern, fold in folds.items()}


def _line(lines: Mapping[str, Line], name: str) -> Line | None:
    """The line that speaks of `name`."""
    return next((line for pattern, line in lines.items() if match(pattern, name)), None)


def _uncounted(line: Line) -> Line:
    return _counted(line, 1)


def _counted(line: Line, count: int) -> Line:
    if isinstance(line, tuple):
        return tuple(replace(entry, count=count) for entry in line)  # type: ignore[return-value]
    return replace(line, count=count)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class _Sizes:
    """How many copies each repeated block has, there and here, and the ratios in which sizes changed."""

    prefixes: frozenset[str]
    old: Mapping[str, int]
    new: Mapping[str, int]
    ratios: tuple[Fraction, ...]

    @classmethod
    def of(cls, plan: Plan, graph: Graph) -> _Sizes:
        fqns = [parameter.fqn for parameter in graph.parameters]
        old: dict[str, int] = {}
        for pattern, line in plan.params.items():
            for name in expand(pattern, line.count) or ():
                prefix, index = _place(name)
                if prefix is not None:
                    old[prefix] = max(old.get(prefix, 0), index + 1)
        new: dict[str, int] = {}
        for name in fqns:
            prefix, index = _place(name)
            if prefix is not None:
                new[prefix] = max(new.get(prefix, 0), index + 1)
        folded = {pattern.partition(".*.")[0] for pattern in plan.params if ".*." in pattern}
        ranged = {re.split(r"\.\{\d", pattern)[0] for pattern in plan.params if ".{" in pattern}
        return cls(foldable_prefixes(find_blocks(graph)) | folded | ranged, old, new, _ratios(plan, graph))

    def copies(self, prefix: str) -> int:
        """How many copies of the block under `prefix` the other graph has."""
        return self.new.get(prefix, 1)

    def twin(self, name: str) -> str:
        """The name in the plan's own model that `name` stands for."""
        block = block_of(name, self.prefixes)
        if block is None:
            return name
        prefix, _, index = block.rpartition(".")
        return f"{prefix}.{self.there(prefix, int(index))}{name[len(block) :]}"

    def there(self, prefix: str, index: int) -> int:
        """The copy in the plan's own model that the copy `index` stands for."""
        new, old = self.new.get(prefix, 1), self.old.get(prefix, 1)
        return index if new == old or new < 2 else round(index * (old - 1) / (new - 1))

    def patterns(self, pattern: str) -> tuple[str, ...]:
        """A pattern of readers in the plan's own model as patterns of the other one."""
        parsed = parse_pattern(pattern)
        prefix = next((p for p in self.prefixes if pattern.startswith(f"{p}.")), None)
        if prefix is None or parsed.segments[len(prefix.split("."))] is None:
            return (pattern,)
        rest = pattern[len(prefix) + 1 :].partition("/")
        tail = rest[0].partition(".")
        behind = (f".{tail[2]}" if tail[2] else "") + (f"/{rest[2]}" if rest[1] else "")
        return tuple(name for i in range(self.copies(prefix)) if match(pattern, self.twin(name := f"{prefix}.{i}{behind}")))


def _place(name: str) -> tuple[str | None, int]:
    """The outermost integer segment of a name: what is before it, and the integer."""
    segments = name.split(".")
    for i in range(1, len(segments)):
        if segments[i].isdecimal():
            return ".".join(segments[:i]), int(segments[i])
    return None, 0


def _ratios(plan: Plan, graph: Graph) -> tuple[Fraction, ...]:
    """By how much dims of inputs and parameters grew or shrank; 1 first."""
    new = {input_name(graph, value): graph.values[value].shape for value in graph.inputs}
    pairs = [(line.shape, new[name]) for name, line in plan.inputs.items() if name in new]
    for parameter in graph.parameters:
        line = _line(plan.params, parameter.fqn)
        if line is not None:
            pairs.append((line.shape, graph.values[parameter.value].shape))
    ratios = [Fraction(here, there) for old, now in pairs for there, here in zip(old, now, strict=False) if there]
    return tuple(dict.fromkeys([Fraction(1), *ratios]))


class _Groups:
    """The groups of grouped shards at the other size: those that the rules offer there.

    All counts of dims that offer the same ones change by one ratio. One by one they would not: of 16 and 8, at half the batch
    8 and 4, the 8 would stay as it is. Dims into which an input was flattened, whose groups are its leading dims, are apart.
    """

    def __init__(self, plan: Plan, graph: Graph, sizes: _Sizes) -> None:
        self._graph, self._sizes = graph, sizes
        self._values = {value.address: value.id for value in graph.values}
        grouped = _GROUPED.search(repr((plan.reshard, plan.ops)).replace("Shard(dim=", "S(").replace(", groups=", ",")) is not None
        self._hints = group_hints(graph, plan.mesh) if grouped or _uses_groups(plan) else {}
        self._inputs = {size for line in plan.inputs.values() for size in line.shape}
        shapes = [graph.values[value].shape for value in graph.inputs]
        self._flattened = {_numel(shape[:ndim]) for shape in shapes for ndim in range(2, len(shape) + 1)}
        self._counts: dict[_Offer, set[int]] = {}
        for value, dim, groups in self._said(plan):
            self._counts.setdefault(self._offer(value, dim), set()).add(groups)

    def _said(self, plan: Plan) -> Iterator[tuple[int, int, int]]:
        """The (value, dim, groups) of all grouped shards in lines of values and ops."""
        for value in self._hints:
            twin = self._sizes.twin(self._graph.values[value].address)
            entries = _line(plan.reshard, twin) or ()
            param = _line(plan.params, twin)
            for p in (*(p for entry in entries for p in (*entry.from_, *entry.to)), *(param.store if param else ())):
                if isinstance(p, Shard) and p.groups > 1:
                    yield value, p.dim, p.groups
        for node in self._graph.nodes if self._hints else ():
            line = _line(plan.ops, self._sizes.twin(node.address))
            for dim, groups in _GROUPED.findall(line.row or "") if line else ():
                yield from ((value, int(dim), int(groups)) for value in (*node.inputs, *node.outputs))

    def _offer(self, value: int, dim: int) -> _Offer:
        """The counts offered for a dim, and whether an input was flattened into it."""
        hints = self._hints.get(value, ())
        return (hints[dim], self._graph.values[value].shape[dim] in self._flattened) if dim < len(hints) else (frozenset(), False)

    def at(self, name: str, placements: Placements) -> Placements:
        """The placements of the value or parameter called `name`."""
        value = self._values.get(name)
        return tuple(
            Shard(p.dim, self._fit(p.dim, p.groups, [value])) if isinstance(p, Shard) and p.groups > 1 and value is not None else p
            for p in placements
        )

    def in_text(self, address: str, row: str) -> str:
        """The row of the op at `address`."""
        node = self._graph.by_address[address]
        around = [*node.inputs, *node.outputs]
        return _GROUPED.sub(lambda found: f"S({found[1]},{self._fit(int(found[1]), int(found[2]), around)})", row)

    def _fit(self, dim: int, groups: int, values: Sequence[int]) -> int:
        for offer in [self._offer(value, dim) for value in values]:
            if offer[0] and (fitted := groups * self._ratio(offer, groups)) in offer[0]:
                return int(fitted)
        return groups

    def _ratio(self, offer: _Offer, groups: int) -> Fraction:
        """The ratio that explains most of the counts; then one by which the largest was a leading dim of an input; then 1."""
        offered, flattened = offer
        counts = self._counts.get(offer, set()) | {groups}

        def explained(ratio: Fraction) -> tuple[bool, int, bool]:
            return (
                groups * ratio in offered,
                sum(count * ratio in offered for count in counts),
                flattened and max(offered) / ratio in self._inputs,
            )

        return max(self._sizes.ratios, key=explained)


def _uses_groups(plan: Plan) -> bool:
    return any(isinstance(p, Shard) and p.groups > 1 for line in plan.params.values() for p in line.store)
