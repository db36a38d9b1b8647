"""One rank of several on one GPU: collectives that move this rank's bytes and take the time that they take among real ones.

A process group made by `join` has the ranks it is told, of which only rank 0 exists. A collective runs on a stream of its own, as
NCCL's do, with as many blocks as NCCL's kernels have, each with a multiprocessor to itself. It reads and writes memory at the pace of
the real one and ends after the seconds that a hardware profile says (tables measured on GPUs, see `cost/communication`). What others
would have sent is this rank's own data: shapes, memory and work are those of the real step, values are not. Sums that would be zero are
filled with small numbers: products of zeros take a GPU less power, so less time. Nothing here waits for another rank that is late, which
real ones do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoplan.cost.communication import collective_seconds
from autoplan.cost.hardware import Hardware
from autoplan.placement import Mesh

THREADS = 640  # of a block: with their registers and memory below nothing of size fits beside it, as beside NCCL's
SHARED_BYTES = 160 * 1024
VECTOR_BYTES = 16

SOURCE = r"""
extern "C" __global__ void __launch_bounds__(640, 1)
paced(const long long* moves, int many, int sums, int ns) {
    // A move is out, in, count, reads, writes and the share of all bytes before it in millionths: out[k * count + i] = in[i] for all k below
    // `writes`, all in[k * count + i] below `reads` are read; a steady pace, and the end after ns.
    // Where zeros would be a sum, small numbers are: two bf16 of either sign, 0.004 to 0.008.
    auto small = [](unsigned at) { return ((at * 2654435761u) & 0x807f807fu) | 0x3b803b80u; };
    __shared__ unsigned long long begin;
    auto now = [] { unsigned long long t; asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t)); return t; };
    if (threadIdx.x == 0) begin = now();
    __syncthreads();
    for (int m = 0; m < many; ++m) {
        const long long* move = moves + 6 * m;
        uint4* out = (uint4*)move[0];
        const uint4* in = (const uint4*)move[1];
        const int count = move[2], reads = move[3], writes = move[4];
        const double from = 1e-6 * ns * move[5], upto = 1e-6 * ns * (m + 1 < many ? move[11] : 1000000);
        const int piece = 4 * blockDim.x, pieces = (count + piece - 1) / piece;
        for (int p = blockIdx.x; p < pieces; p += gridDim.x) {
            if (threadIdx.x == 0) while (now() - begin < (unsigned long long)(from + (upto - from) * p / pieces)) __nanosleep(200);
            __syncthreads();
            const int first = p * piece + threadIdx.x, end = min(count, (p + 1) * piece);
            for (int i = first; i < end; i += blockDim.x) {
                uint4 value = in[i];
                unsigned seen = 0;
                for (int k = 1; k < reads; ++k) seen |= in[(long long)k * count + i].x;
                if (seen == 0x7fc1a2b3u) value.x ^= 1u;
                if (sums && !(value.x | value.y | value.z | value.w))
                    value = make_uint4(small(4u * i), small(4u * i + 1u), small(4u * i + 2u), small(4u * i + 3u));
                for (int k = 0; k < writes; ++k) out[(long long)k * count + i] = value;
            }
        }
    }
    if (threadIdx.x == 0) while (now() - begin < (unsigned long long)ns) __nanosleep(200);
}
"""


Move = tuple[Tensor, Tensor]
"""(out, source); the larger is the full tensor."""


def join(ranks: int, hardware: Hardware, ctas: int, device: torch.device) -> None:
    """Be rank 0 of `ranks` on `device`; on a CPU collectives only move bytes."""
    wire = Wire(hardware, ctas, device)

    def make(_store: object, rank: int, size: int, _timeout: object) -> EmulatedGroup:
        return EmulatedGroup(rank, size, wire)

    os.environ.setdefault("MASTER_ADDR", "localhost")
    dist.Backend.register_backend("emulated", make, devices=["cpu", "cuda"])
    dist.init_process_group("emulated", rank=0, world_size=ranks, store=dist.HashStore())


class Wire:
    """What all groups share: the kernel, and how long collectives take."""

    def __init__(self, hardware: Hardware, ctas: int, device: torch.device) -> None:
        self.hardware, self.ctas, self.device = hardware, ctas, device
        self.kernel: Any = None
        self.tables: dict[tuple[int, ...], Tensor] = {}
        if device.type == "cuda":
            self.kernel = torch.cuda._compile_kernel(SOURCE, "paced")
            self.kernel.set_shared_memory_config(SHARED_BYTES)

    def seconds(self, kind: str, ranks: int, full_bytes: int) -> float:
        return collective_seconds(kind, (0,), full_bytes, Mesh(("x",), (ranks,)), self.hardware)

    def move(self, moves: Sequence[Move], seconds: float, *, sums: bool) -> None:
        """Fill each `out` with the whole of its source again and again, or with its beginning, all within `seconds` of the current stream.

        One kernel for all, as NCCL has one for a group. Which tensors these are lies on the device: a step mostly has those of the last.
        """
        if not self.kernel or not all(out.is_cuda for out, _ in moves):
            for out, source in moves:
                _repeat(out, source)
            return
        table: list[int] = []
        whole, before = sum(map(_full_bytes, moves)), 0
        for move in moves:
            out, source = move
            written, read = _bytes(out), _bytes(source)
            once = min(written, read)
            by_vectors = all(size % VECTOR_BYTES == 0 for size in (once, out.data_ptr(), source.data_ptr()))
            if not by_vectors:
                _repeat(out, source)
            times = (read // once, written // once) if once else (1, 1)
            share = 1_000_000 * before // max(1, whole)
            table += (out.data_ptr(), source.data_ptr(), once // VECTOR_BYTES if by_vectors else 0, *times, share)
            before += _full_bytes(move)
        key = tuple(table)
        if key not in self.tables:
            self.tables[key] = torch.tensor(table).pin_memory().to(self.device, non_blocking=True)
        self.kernel((self.ctas, 1, 1), (THREADS, 1, 1), [self.tables[key], len(moves), int(sums), int(1e9 * seconds)], SHARED_BYTES)


def _repeat(out: Tensor, source: Tensor) -> None:
    flat, given = out.view(-1), source.reshape(-1).clone()  # FSDP gathers into what it gathers from
    if given.numel() >= flat.numel():
        flat.copy_(given[: flat.numel()])
    else:
        flat.view(-1, given.numel()).copy_(given)


class EmulatedGroup(dist.ProcessGroup):
    """Collectives of one group, one after the other on its own stream; those that nobody runs ahead on the caller's."""

    def __init__(self, rank: int, size: int, wire: Wire) -> None:
        super().__init__(rank, size)
        self._ranks, self._wire = size, wire
        self._stream = torch.cuda.Stream() if wire.kernel else None
        self._last: torch.cuda.Event | None = None

    def getBackendName(self) -> str:
        return "emulated"

    @property
    def group_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    @property
    def pg_name(self) -> str:
        return self.group_name

    def _run(self, kind: str, moves: Sequence[Move], options: Any) -> dist.Work:
        outs = [out for out, _ in moves]
        if not self._stream or not any(out.is_cuda for out in outs):
            self._wire.move(moves, 0.0, sums=False)
            return Done(None, outs, ())
        here = torch.cuda.current_stream()
        stream = self._stream if getattr(options, "asyncOp", True) else here
        stream.wait_stream(here)
        if self._last is not None:
            stream.wait_event(self._last)
        seconds = self._wire.seconds(kind, self._ranks, sum(map(_full_bytes, moves)))
        with torch.cuda.stream(stream):
            self._wire.move(moves, seconds, sums=kind in ("all-reduce", "reduce-scatter"))
            self._last = torch.cuda.Event()
            self._last.record(stream)
        return Done(self._last, outs, [source for _, source in moves])

    def _gathered(self, outs: Sequence[Tensor], sources: Sequence[Tensor], options: Any) -> dist.Work:
        return self._run("all-gather", [(out, source.contiguous()) for out, source in zip(outs, sources, strict=True)], options)

    def _scattered(self, outs: Sequence[Tensor], sources: Sequence[Tensor], options: Any) -> dist.Work:
        return self._run("reduce-scatter", [(out, source.contiguous()) for out, source in zip(outs, sources, strict=True)], options)

    def _allgather_base(self, out: Tensor, source: Tensor, options: Any = None) -> dist.Work:
        return self._gathered([out], [source], options)

    def allgather_into_tensor_coalesced(self, outs: list[Tensor], sources: list[Tensor], options: Any = None) -> dist.Work:
        return self._gathered(outs, sources, options)

    def allgather(self, outs: list[list[Tensor]], sources: list[Tensor], options: Any = None) -> dist.Work:
        for out, source in zip(outs, sources, strict=True):
            for part in out:
                part.copy_(source)
        return Done(None, [part for out in outs for part in out], ())

    def _reduce_scatter_base(self, out: Tensor, source: Tensor, options: Any = None) -> dist.Work:
        return self._scattered([out], [source], options)

    def reduce_scatter_tensor_coalesced(self, outs: list[Tensor], sources: list[Tensor], options: Any = None) -> dist.Work:
        return self._scattered(outs, sources, options)

    def allreduce(self, tensors: list[Tensor], options: Any = None) -> dist.Work:
        return self._run("all-reduce", [(tensor, tensor) for tensor in tensors], options)

    def allreduce_coalesced(self, tensors: list[Tensor], options: Any = None) -> dist.Work:
        return self.allreduce(tensors, options)

    def alltoall_base(self, out: Tensor, source: Tensor, out_sizes: Any, in_sizes: Any, options: Any = None) -> dist.Work:
        return self._run("all-to-all", [(out, source)], options)

    def broadcast(self, tensors: list[Tensor], options: Any = None) -> dist.Work:
        return Done(None, tensors, ())

    def scatter(self, outs: list[Tensor], sources: list[list[Tensor]], options: Any = None) -> dist.Work:
        for out, parts in zip(outs, sources, strict=True):
            out.copy_(parts[0])
        return Done(None, outs, ())

    def barrier(self, opts: Any = None) -> dist.Work:
        return Done(None, [], ())

    # as torch 2.13 calls them
    all_gather_single = _allgather_base
    all_gather_single_coalesced = allgather_into_tensor_coalesced
    reduce_scatter_single = _reduce_scatter_base
    reduce_scatter_single_coalesced = reduce_scatter_tensor_coalesced
    all_to_all_single = alltoall_base


class Done(dist._Work):
    """A collective under way. What it reads must live until somebody waits for it."""

    def __init__(self, event: torch.cuda.Event | None, results: list[Tensor], reads: Sequence[Tensor]) -> None:
        super().__init__()
        self._event, self._results, self._reads = event, results, reads

    def wait(self, timeout: object = None) -> bool:
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
        self._reads = ()
        return True

    def is_completed(self) -> bool:
        return self._event is None or self._event.query()

    def is_success(self) -> bool:
        return True

    def result(self) -> list[Tensor]:
        return self._results

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """For DDP, which waits for futures: done when the event is."""
        devices = sorted({tensor.device.index for tensor in self._results if tensor.is_cuda})
        future: torch.futures.Future[list[Tensor]] = torch.futures.Future(devices=devices)
        if self._event is None:
            future.set_result(self._results)
            return future
        with torch.cuda.stream(torch.cuda.Stream()):  # the future notes what its stream has to do
            torch.cuda.current_stream().wait_event(self._event)
            future.set_result(self._results)
        return future


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _full_bytes(move: Move) -> int:
    return max(map(_bytes, move))


def check(hardware: Hardware, ctas: int) -> list[dict[str, float | str | int]]:
    """What emulated collectives of four ranks take by themselves, beside what they should."""
    group = EmulatedGroup(0, 4, Wire(hardware, ctas, torch.device("cuda")))
    found: list[dict[str, float | str | int]] = []
    for nbytes in (2**20, 2**24, 2**28):
        full, part = torch.randn(nbytes // 4, device="cuda"), torch.randn(nbytes // 16, device="cuda")
        runs: dict[str, Callable[[], dist.Work]] = {
            "all-gather": lambda full=full, part=part: group._allgather_base(full, part),
            "reduce-scatter": lambda full=full, part=part: group._reduce_scatter_base(part, full),
            "all-reduce": lambda full=full: group.allreduce([full]),
        }
        for kind, run in runs.items():
            run().wait()
            torch.cuda.synchronize()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(10):
                run().wait()
            end.record()
            torch.cuda.synchronize()
            wanted = collective_seconds(kind, (0,), nbytes, Mesh(("x",), (4,)), hardware)
            found.append(
                {"kind": kind, "bytes": nbytes, "wanted_us": round(1e6 * wanted, 1), "us": round(100 * begin.elapsed_time(end), 1)}
            )
    return found
