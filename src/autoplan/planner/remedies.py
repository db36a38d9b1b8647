"""What a user may change where nothing fits: give up a pin, another shape of the mesh, more devices, another precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

from autoplan.graph import Graph
from autoplan.placement import Mesh, parse_mesh
from autoplan.plan.schema import Options
from autoplan.planner.build import Built, build_problem
from autoplan.planner.infeasible import Remedy
from autoplan.planner.pins import pinned
from autoplan.planner.prices import Prices
from autoplan.planner.request import PlanRequest
from autoplan.planner.shapes import shape_text
from autoplan.planner.terms import terms_of

SHAPES = 3  # other shapes of the mesh that are tried


def remedies(graph: Graph, request: PlanRequest, recaptured: Callable[[Options], Graph]) -> list[Remedy]:
    """What may be tried, the least change first; `recaptured(options)` is the graph in another precision."""
    found = [Remedy(f"without the pin {dict(pin)}", _without_pin(graph, request, k)) for k, pin in enumerate(request.pins)]
    if request.options.precision != "bf16":
        options = replace(request.options, precision="bf16")
        found.append(Remedy("with --precision bf16", lambda: problem_of(recaptured(options), replace(request, options=options))))
    if not request.pins:  # which speak of this mesh
        found += [Remedy(f"on --mesh {shape_text(shape)}", _on(graph, request, shape)) for shape in _shapes(request.mesh)]
    return found


def problem_of(graph: Graph, request: PlanRequest) -> Built:
    """The problem of planning a graph as the request says, nothing recomputed."""
    candidates, _ = pinned(graph, request)
    return build_problem(terms_of(candidates, Prices(graph, request.mesh, request.hardware, request.options)), request.limit_bytes)


def _without_pin(graph: Graph, request: PlanRequest, k: int) -> Callable[[], Built]:
    return lambda: problem_of(graph, replace(request, pins=request.pins[:k] + request.pins[k + 1 :]))


def _on(graph: Graph, request: PlanRequest, shape: tuple[int, ...]) -> Callable[[], Built]:
    return lambda: problem_of(graph, replace(request, mesh=parse_mesh(shape_text(shape))))


def _shapes(mesh: Mesh) -> list[tuple[int, ...]]:
    """Other shapes of as many devices, then the same with twice as many."""
    n = prod(mesh.shape)
    same = [shape for shape in _two_axes(n) if shape != mesh.shape]
    return [*same[:SHAPES], (2 * mesh.shape[0], *mesh.shape[1:])]


def _two_axes(n: int) -> Iterator[tuple[int, ...]]:
    yield (n,)
    yield from ((n // k, k) for k in range(2, n) if n % k == 0)
