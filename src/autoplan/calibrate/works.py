"""What is timed, as the cost model sees it: every work knows the seconds that a hardware profile predicts for it.

The `family` of a work names the numbers of a profile that it decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from autoplan.cost.communication import collective_seconds
from autoplan.cost.compute import call_seconds, optimizer_seconds
from autoplan.cost.families import spec_bytes
from autoplan.cost.hardware import Hardware
from autoplan.graph.ir import ITEM_BYTES, Ref
from autoplan.placement import Mesh, parse_mesh
from autoplan.rules.row import Call, TensorSpec

Way = Literal["forward", "backward"]
DROPPED = 0.1  # the share that works with dropout drop; their time does not depend on it


class Work(Protocol):
    """One thing to time; `str(work)` is what people read of it."""

    @property
    def family(self) -> str:
        """The numbers of a profile that it decides."""

    @property
    def memory_bytes(self) -> int:
        """What its tensors take on a device, about."""

    def seconds(self, hardware: Hardware) -> float:
        """What the profile predicts."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A work and the seconds it took: the median of so many `runs`."""

    work: Work
    seconds: float
    runs: int


@dataclass(frozen=True, slots=True)
class Multiply:
    """x * y of vectors: two are read, one is written."""

    count: int
    dtype: str
    family: str = "vectors"

    def __str__(self) -> str:
        return f"x*y of {self.count} {self.dtype}"

    @property
    def memory_bytes(self) -> int:
        """Of all three."""
        return 3 * self.count * ITEM_BYTES[self.dtype]

    def seconds(self, hardware: Hardware) -> float:
        """One kernel."""
        return hardware.copy_seconds(self.memory_bytes)


@dataclass(frozen=True, slots=True)
class Product:
    """`linear` of [rows, depth] with a weight [columns, depth]; backward are the gradients of both."""

    rows: int
    depth: int
    columns: int
    dtype: str
    way: Way = "forward"
    family: str = "products"

    def __str__(self) -> str:
        return f"{self.rows} x {self.depth} x {self.columns} {self.dtype} {self.way}"

    @property
    def call(self) -> Call:
        """As a graph has it."""
        return _call("linear", [(self.rows, self.depth), (self.columns, self.depth)], (self.rows, self.columns), self.dtype)

    @property
    def flops(self) -> int:
        """Two for each multiply-add; backward makes two products."""
        return 2 * self.rows * self.depth * self.columns * (1 if self.way == "forward" else 2)

    @property
    def memory_bytes(self) -> int:
        """The three matrices and their gradients."""
        return 2 * _bytes(self.call)

    def seconds(self, hardware: Hardware) -> float:
        """Of one way."""
        return _seconds(self.call, self.way, hardware)


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention; `key_heads` are fewer than `heads` where these share keys. With `dropout` some of the weights are dropped."""

    batch: int
    heads: int
    key_heads: int
    length: int
    size: int
    dtype: str
    way: Way = "forward"
    dropout: bool = False

    def __str__(self) -> str:
        heads = f"{self.heads}" if self.heads == self.key_heads else f"{self.heads} ({self.key_heads})"
        return f"{self.batch} x {heads} x {self.length} x {self.size} {self.dtype}"

    @property
    def family(self) -> str:
        """By way, and apart with dropout."""
        return f"attention {self.way}" + (" with dropout" if self.dropout else "")

    @property
    def keywords(self) -> dict[str, Any]:
        """The arguments of `scaled_dot_product_attention` beside its tensors."""
        return {"dropout_p": DROPPED if self.dropout else 0.0, "is_causal": True, "enable_gqa": self.key_heads < self.heads}

    @property
    def call(self) -> Call:
        """As a graph has it."""
        shapes = [(self.batch, count, self.length, self.size) for count in (self.heads, self.key_heads, self.key_heads)]
        return _call("scaled_dot_product_attention", shapes, shapes[0], self.dtype, **self.keywords)

    @property
    def memory_bytes(self) -> int:
        """Queries, keys, values, the output and their gradients."""
        return 2 * _bytes(self.call)

    def seconds(self, hardware: Hardware) -> float:
        """Of one way."""
        return _seconds(self.call, self.way, hardware)


@dataclass(frozen=True, slots=True)
class Drop:
    """Dropout of `count` numbers, forward, as the runtime does it: a mask is drawn and kept."""

    family: ClassVar[str] = "dropout"
    count: int
    dtype: str

    def __str__(self) -> str:
        return f"dropout of {self.count} {self.dtype}"

    @property
    def memory_bytes(self) -> int:
        """Input, output and the mask."""
        return (2 * ITEM_BYTES[self.dtype] + 1) * self.count

    def seconds(self, hardware: Hardware) -> float:
        """Of its bytes, or of drawing the numbers."""
        return _seconds(_call("dropout", [(self.count,)], (self.count,), self.dtype, p=DROPPED, train=True), "forward", hardware)


@dataclass(frozen=True, slots=True)
class Update:
    """A step of fused AdamW over `tensors` parameters of `count` numbers together."""

    family: ClassVar[str] = "optimizer"
    count: int
    tensors: int
    dtype: str

    def __str__(self) -> str:
        return f"AdamW of {self.count} {self.dtype} in {self.tensors}"

    @property
    def memory_bytes(self) -> int:
        """Parameters, gradients and two moments."""
        return 4 * self.count * ITEM_BYTES[self.dtype]

    def seconds(self, hardware: Hardware) -> float:
        """All but the gradients are written too."""
        nbytes = self.count * ITEM_BYTES[self.dtype]
        return optimizer_seconds(nbytes, nbytes, 2 * nbytes, hardware)


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective over `axes` of `mesh`, all groups of it at once; `full_bytes` are those of the gathered tensor.

    `per_host` ranks are on each host. One that is `between` is in no table: it shows how well these interpolate.
    """

    kind: str
    mesh: Mesh
    axes: tuple[int, ...]
    full_bytes: int
    per_host: int
    between: bool = False

    def __str__(self) -> str:
        return f"{self.kind} of {self.full_bytes} bytes over {self.ranks}{'' if self.is_inside else ' across hosts'}"

    @property
    def family(self) -> str:
        """Links inside a host, or the network."""
        return "links" if self.is_inside else "network"

    @property
    def ranks(self) -> int:
        """Of one group."""
        return self.mesh.group_size(self.axes)

    @property
    def is_inside(self) -> bool:
        """Whether every group is on one host: a group over the last axis alone that is not larger than a host."""
        return self.axes == (self.mesh.ndim - 1,) and self.ranks <= self.per_host

    @property
    def memory_bytes(self) -> int:
        """Input and output."""
        return 2 * self.full_bytes

    def seconds(self, hardware: Hardware) -> float:
        """As on the hosts of the profile, which may have more devices than were measured; across hosts as it was measured."""
        if self.is_inside:
            return collective_seconds(self.kind, (0,), self.full_bytes, parse_mesh(str(self.ranks)), hardware)
        return collective_seconds(self.kind, self.axes, self.full_bytes, self.mesh, hardware.changed(gpus_per_node=self.per_host))


@dataclass(frozen=True, slots=True)
class EagerStep:
    """A training step of a model so small that the device waits for the host; its graph has `ops`."""

    family: ClassVar[str] = "host ops"
    memory_bytes: ClassVar[int] = 0
    ops: int

    def __str__(self) -> str:
        return f"eager step of {self.ops} ops"

    def seconds(self, hardware: Hardware) -> float:
        """Forward, backward and optimizer."""
        return self.ops * hardware.host.op_s


@dataclass(frozen=True, slots=True)
class Start:
    """What the host does for one collective of a redistribution, one way."""

    family: ClassVar[str] = "host redistributions"
    memory_bytes: ClassVar[int] = 0
    kind: str
    way: Way

    def __str__(self) -> str:
        return f"{self.kind} {self.way}"

    def seconds(self, hardware: Hardware) -> float:
        """Alike for all kinds."""
        return hardware.host.redistribution_s


def _call(op: str, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...], dtype: str, **keywords: Any) -> Call:
    operands, outputs = (tuple(TensorSpec(shape, dtype, needs_grad=True) for shape in some) for some in (shapes, [out]))
    return Call(f"aten.{op}.default", tuple(map(Ref, range(len(shapes)))), keywords, operands, outputs, axis_size=1)


def _bytes(call: Call) -> int:
    return sum(map(spec_bytes, (*call.operands, *call.outputs)))


def _seconds(call: Call, way: Way, hardware: Hardware) -> float:
    cost = call_seconds(call, hardware)
    return cost.forward_s if way == "forward" else cost.backward_s
