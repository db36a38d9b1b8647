"""The plan as values: what the YAML file says, section by section (DESIGN 8). No torch, no YAML.

Everything is frozen; sequences are tuples, and mappings keep the order of the file. Names, the keys of the sections, are
patterns over FQNs and addresses (`patterns.py`). Milliseconds and GiB, as people read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autoplan.placement import Mesh, Placements

FORMAT = 1
MODES = ("train", "infer")
OPTIMIZERS = ("adamw", "sgd", "none")
PRECISIONS = ("fp32", "bf16", "bf16-master")
COLLECTIVE_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")
GATHER_GROUPS = ("block", "parameter")
LAYOUTS = ("ddp", "fsdp", "fsdp+tp", "tp")

Uses = Placements | Mapping[str, Placements]
"""How a parameter is used: one tuple of placements, or one per pattern of the ops that use it."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective over the ranks that differ only in their coordinates on `axes`."""

    kind: str
    axes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind} {','.join(self.axes)}"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Which model the plan is for; `batch` and `seq` make the example input of a Hugging Face target, `rules` registers rules of its ops."""

    target: str
    parameters: int
    digest: str
    graph: str
    set: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    seq: int | None = None
    rules: str | None = None


@dataclass(frozen=True, slots=True)
class HardwareInfo:
    """The profile the predictions rest on; `per_host` is how many ranks it puts on a host, None if the mesh has no more than that."""

    profile: str
    digest: str
    per_host: int | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; `memory_gib` is the limit per device, None for the device's own memory.

    `compile`: steps run through torch.compile, and predictions are of such steps.
    """

    mode: str = "train"
    optimizer: str = "adamw"
    precision: str = "bf16"
    memory_gib: float | None = None
    seed: int = 0
    keep_outputs: bool = False
    compile: bool = False


@dataclass(frozen=True, slots=True)
class InputLine:
    """An input of the model: its global shape and where its elements are."""

    shape: tuple[int, ...]
    dtype: str
    place: Placements


@dataclass(frozen=True, slots=True)
class OutputLine:
    """Where an output's elements are."""

    place: Placements


@dataclass(frozen=True, slots=True)
class ParamLine:
    """`count` parameters of one global shape: how they are stored between steps, and how they are used."""

    shape: tuple[int, ...]
    store: Placements
    use: Uses
    count: int = 1


@dataclass(frozen=True, slots=True)
class BufferLine:
    """`count` buffers of one global shape, and how they are used."""

    shape: tuple[int, ...]
    use: Placements
    count: int = 1


@dataclass(frozen=True, slots=True)
class OpLine:
    """What the inputs of an op leave open: its row, the collectives inside it, the placements of its gradient."""

    row: str | None = None
    inside: tuple[Collective, ...] = ()
    gradient: Placements | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class ReshardEntry:
    """One redistribution of a value for the consumers named in `for_` (all of them when empty)."""

    from_: Placements
    to: Placements
    forward: tuple[Collective, ...] = ()
    backward: tuple[Collective, ...] = ()
    count: int = 1
    for_: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GatherLine:
    """How stored parameters become used ones: `count` groups, with the collectives of each."""

    group: str
    regather: bool
    prefetch: int
    forward: tuple[Collective, ...] = ()
    backward: tuple[Collective, ...] = ()
    count: int = 1


@dataclass(frozen=True, slots=True)
class RecomputeLine:
    """The first `blocks` of `of` copies compute their activations again in backward."""

    blocks: int
    of: int
    policy: str


@dataclass(frozen=True, slots=True)
class FallbackLine:
    """An op without a rule, replicated: where it is and the ms per step this adds."""

    address: str
    op: str
    count: int
    added_ms: float


@dataclass(frozen=True, slots=True)
class CommunicationMs:
    """Communication per step in ms: what the step waits for, and what hides behind compute."""

    exposed: float = 0.0
    hidden: float = 0.0


@dataclass(frozen=True, slots=True)
class MemoryGib:
    """GiB per device at the moment of the peak, which is the sum of the parts."""

    peak: float = 0.0
    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    gathered: float = 0.0
    transient: float = 0.0


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a step costs: `step_ms` is compute, recompute, optimizer, host and exposed communication together."""

    step_ms: float = 0.0
    compute_ms: float = 0.0
    recompute_ms: float = 0.0
    optimizer_ms: float = 0.0
    host_ms: float = 0.0
    communication_ms: CommunicationMs = CommunicationMs()
    memory_gib: MemoryGib = MemoryGib()


@dataclass(frozen=True, slots=True)
class ByHandLine:
    """A layout that one writes by hand, predicted for the same request: ms of a step and GiB at its peak, or why there is `none`."""

    step_ms: float | None = None
    peak_gib: float | None = None
    none: str | None = None


@dataclass(frozen=True, slots=True)
class SolverInfo:
    """How sure the decisions are: no plan costs less than by this part, `gap`, of the plan's cost; None where nothing is proved.

    If `folded`, status and gap compare with plans that treat all copies of a block alike, and `unfolded_gap` with all plans.
    """

    status: str
    gap: float | None = None
    folded: bool = False
    unfolded_gap: float | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where each key of a plan was read, so that every later message can name the line."""

    source: str = "plan"
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def where(self, *keys: str) -> str:
        """`plan.yaml:41` for the key path, or for the nearest path above it; without lines the path itself."""
        for depth in range(len(keys), 0, -1):
            if line := self.lines.get(keys[:depth]):
                return f"{self.source}:{line}"
        return " ".join((f"{self.source}:", *keys)) if keys else self.source


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a plan file says. The decisions come first; only they are executed."""

    model: ModelInfo
    mesh: Mesh
    hardware: HardwareInfo
    options: Options
    inputs: Mapping[str, InputLine]
    outputs: Mapping[str, OutputLine]
    params: Mapping[str, ParamLine]
    predicted: Predicted
    solver: SolverInfo
    pins: tuple[Mapping[str, Any], ...] = ()
    buffers: Mapping[str, BufferLine] = field(default_factory=dict)
    ops: Mapping[str, OpLine] = field(default_factory=dict)
    reshard: Mapping[str, tuple[ReshardEntry, ...]] = field(default_factory=dict)
    gather: Mapping[str, GatherLine] = field(default_factory=dict)
    recompute: Mapping[str, RecomputeLine] = field(default_factory=dict)
    fallbacks: tuple[FallbackLine, ...] = ()
    by_hand: Mapping[str, ByHandLine] = field(default_factory=dict)
    provenance: Provenance = field(default=Provenance(), compare=False, repr=False)
