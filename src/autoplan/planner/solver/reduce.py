"""Exact reductions: a smaller problem with the same optimum, and the trail back.

Every step keeps at least one optimal choice, memory included: it drops strategies that cannot be or that another one
replaces at no cost, and takes out nodes whose choice follows from their neighbours'. What a node or edge always pays or
uses moves into nodes, the constant and the limits, so that what is left starts at nought.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from time import perf_counter

import numpy as np

from autoplan.planner.solver.model import FORBIDDEN, Array, Edge, Model, Span, Usage
from autoplan.planner.solver.rows import without_superfluous_rows
from autoplan.planner.solver.trail import Bridged, Fixed, Kept, Merged, Trail

LARGEST_COMPARISON = 3_000_000  # entries looked at to compare the strategies of one node along one edge
LARGEST_TABLE = 400_000  # entries of the table that takes out a node between two others
NO_USAGE: Usage = {}


class Infeasible(Exception):
    """No choice keeps every limit and avoids what is forbidden."""


def reduce(model: Model, deadline: float | None = None, *, limited: bool = True) -> tuple[Model, Trail]:
    """The reduced problem and the way back, as far as it comes in time; raises Infeasible where it is seen that nothing fits.

    If not `limited`, the limits only say where to count from: the problem is the same for all limits that differ by a constant.
    """
    reducer = _Reducer(model, limited)
    reducer.run(deadline)
    return reducer.result()


class _Reducer:
    """The problem while it shrinks: `near[u][w]` is the edge as u sees it; a node that is gone has no costs."""

    def __init__(self, model: Model, limited: bool) -> None:
        self.limited = limited
        self.costs: list[Array | None] = [costs.copy() for costs in model.costs]
        self.usage: list[dict[Span, Array]] = [dict(usage) for usage in model.usage]
        self.near: list[dict[int, Edge]] = [{} for _ in model.costs]
        self.limits = model.limits.copy()
        self.constant = model.constant
        self.trail = Trail()
        self.active = np.ones(len(model.limits), dtype=bool)
        self.spans: dict[Span, Span | None] = {}
        self.todo = OrderedDict.fromkeys(range(len(model.costs)))
        self.pushed: set[tuple[int, int]] = set()
        self.least_limit = 0  # of all rows, when they were last looked at: what uses no more may fit
        for (u, w), edge in model.edges.items():
            self._add_edge(u, w, edge)
        for u, costs in enumerate(model.costs):
            self._keep(u, costs < FORBIDDEN)

    def run(self, deadline: float | None) -> None:
        """Steps until none applies; which rows can still be exceeded is seen anew each time the others stand still."""
        self._watch_rows()
        while self.todo:
            while self.todo:
                if deadline is not None and perf_counter() > deadline:
                    return
                u, _ = self.todo.popitem(last=False)
                if self.costs[u] is not None:
                    self._visit(u)
            self._watch_rows()

    def result(self) -> tuple[Model, Trail]:
        """What is left, its nodes numbered anew."""
        left = [u for u, costs in enumerate(self.costs) if costs is not None]
        number = {u: position for position, u in enumerate(left)}
        edges = {(number[u], number[w]): edge for u in left for w, edge in self.near[u].items() if u < w}
        self.trail.nodes = tuple(left)
        model = Model(
            [costs for costs in self.costs if costs is not None], [self.usage[u] for u in left], edges, self.limits, self.constant
        )
        model, self.trail.rows = without_superfluous_rows(model, limited=self.limited)
        return model, self.trail

    def _visit(self, u: int) -> None:
        for w in list(self.near[u]):
            if w in self.near[u]:
                self._push_edge(u, w)
        self._push_usage(u)
        if len(self._costs(u)) > 1:
            self._drop_dominated(u)
        if len(self._costs(u)) == 1:
            self._settle(u)
        elif not self._merge_matching(u):
            self._take_out(u)

    def _costs(self, u: int) -> Array:
        costs = self.costs[u]
        assert costs is not None
        return costs

    def _touch(self, nodes: Iterable[int]) -> None:
        self.todo.update(dict.fromkeys(nodes))

    # Edges

    def _set_edge(self, u: int, w: int, edge: Edge) -> None:
        self.near[u][w], self.near[w][u] = edge, edge.seen_from_second()
        self.pushed.discard((min(u, w), max(u, w)))

    def _add_edge(self, u: int, w: int, edge: Edge) -> None:
        before = self.near[u].get(w)
        if before is not None:
            edge = Edge(np.minimum(before.cost + edge.cost, FORBIDDEN), _sum(before.usage, edge.usage))
        self._set_edge(u, w, edge)

    def _drop_edge(self, u: int, w: int) -> None:
        del self.near[u][w], self.near[w][u]
        self._touch((u, w))

    def _push_edge(self, u: int, w: int) -> None:
        """Strategies without a partner go; row and column minima move to the nodes; an edge of noughts goes."""
        if (min(u, w), max(u, w)) in self.pushed:
            return
        if self.limited and self.near[u][w].usage:
            self._forbid_excess(u, w)
        cost = self.near[u][w].cost
        rows, columns = cost.min(1), cost.min(0)
        if (rows >= FORBIDDEN).any() or (columns >= FORBIDDEN).any():
            self._keep(u, rows < FORBIDDEN)
            self._keep(w, columns < FORBIDDEN)
            return self._push_edge(u, w)
        edge = self.near[u][w]
        possible = cost < FORBIDDEN
        everywhere = bool(possible.all())
        if rows.any():
            cost = cost - rows[:, None] if everywhere else np.where(possible, cost - rows[:, None], FORBIDDEN)
            self.costs[u] = self.costs[u] + rows
            columns = cost.min(0)
            self._touch((u,))
        if columns.any():
            cost = cost - columns if everywhere else np.where(possible, cost - columns, FORBIDDEN)
            self.costs[w] = self.costs[w] + columns
            self._touch((w,))
        usage = self._push_edge_usage(u, w, edge.usage, possible) if edge.usage else NO_USAGE
        if not usage and not cost.any():
            self._drop_edge(u, w)
            return
        self._set_edge(u, w, Edge(cost, usage))
        self.pushed.add((min(u, w), max(u, w)))

    def _forbid_excess(self, u: int, w: int) -> None:
        """Forbid the pairs that alone use more than can be left to them."""
        edge = self.near[u][w]
        never = np.zeros(edge.cost.shape, dtype=bool)
        for span, amounts in edge.usage.items():
            never |= amounts > self.limits[span.rows].min()
        if never.any():
            usage = {span: np.where(never, 0, amounts) for span, amounts in edge.usage.items()}
            self._set_edge(u, w, Edge(np.where(never, FORBIDDEN, edge.cost), usage))

    def _push_edge_usage(self, u: int, w: int, usage: Usage, possible: Array) -> dict[Span, Array]:
        left = {}
        for span, amounts in self._watched(usage).items():
            bounded = np.where(possible, amounts, FORBIDDEN)
            rows = bounded.min(1)
            columns = (bounded - rows[:, None]).min(0)
            for node, pushed in ((u, rows), (w, columns)):
                if pushed.any():
                    self.usage[node][span] = self.usage[node].get(span, 0) + pushed
                    self._touch((node,))
            rest = np.where(possible, amounts - rows[:, None] - columns, 0)
            if rest.any():
                left[span] = rest
        return left

    # Strategies

    def _keep(self, u: int, wanted: Array) -> None:
        """Drop the strategies of u that are not `wanted`."""
        if wanted.all():
            return
        kept = np.flatnonzero(wanted)
        if not len(kept):
            raise Infeasible
        self.trail.steps.append(Kept(u, kept))
        self.costs[u] = self._costs(u)[kept]
        self.usage[u] = {span: amounts[kept] for span, amounts in self.usage[u].items()}
        for w, edge in list(self.near[u].items()):
            self._set_edge(u, w, _rows(edge, kept))
        self._touch((u, *self.near[u]))

    def _push_usage(self, u: int) -> None:
        """What every strategy uses goes off the limits; strategies that exceed what can be left to them go."""
        usage = self._watched(self.usage[u])
        self.usage[u] = {}
        if not usage:
            return
        table = np.array(list(usage.values()))
        least = table.min(1)
        most = table.max(1)
        table -= least[:, None]
        for span, always in zip(usage, least.tolist(), strict=True):
            if always:
                self.limits[span.rows] -= always
        wanted = np.ones(table.shape[1], dtype=bool)
        for span, amounts, spread in zip(usage, table, (most - least).tolist(), strict=True):
            if spread:
                self.usage[u][span] = amounts
                if self.limited and spread > self.least_limit:
                    wanted &= amounts <= self.limits[span.rows].min()
        self._keep(u, wanted)

    def _drop_dominated(self, u: int) -> None:
        """Drop strategies that another one replaces: it costs no more whatever the neighbours choose, and uses no more."""
        costs = self._costs(u)
        edges = list(self.near[u].values())
        if any(len(costs) ** 2 * edge.cost.shape[1] > LARGEST_COMPARISON for edge in edges):
            return
        better = _no_more(costs, [edge.cost for edge in edges])
        for span in dict.fromkeys([*self.usage[u], *(span for edge in edges for span in edge.usage)]):
            if np.count_nonzero(better) == len(costs):
                return  # each only itself
            own = self.usage[u].get(span, np.zeros(len(costs), dtype=np.int64))
            better &= _no_more(own, [edge.usage[span] for edge in edges if span in edge.usage])
        strictly = better & (~better.T | (np.arange(len(costs))[:, None] < np.arange(len(costs))))
        self._keep(u, np.asarray(~strictly.any(0)))

    # Nodes

    def _settle(self, u: int) -> None:
        """A node of one strategy: what it costs and uses with each strategy of a neighbour belongs to the neighbour."""
        self._push_usage(u)
        self.constant += int(self._costs(u)[0])
        for w, edge in list(self.near[u].items()):
            self._keep(w, edge.cost[0] < FORBIDDEN)
            edge = self.near[u][w]
            self.costs[w] = self._costs(w) + edge.cost[0]
            self._use_more(w, {span: amounts[0] for span, amounts in edge.usage.items()})
            self._drop_edge(u, w)
        self._remove(u)
        self.trail.steps.append(Fixed(u, 0))

    def _use_more(self, u: int, usage: Usage) -> None:
        own = self.usage[u]
        for span, amounts in usage.items():
            own[span] = own[span] + amounts if span in own else amounts

    def _remove(self, u: int) -> None:
        assert not self.near[u]
        self.costs[u], self.usage[u] = None, {}

    def _merge_matching(self, u: int) -> bool:
        """Merge neighbours into u where each strategy of u allows exactly one of theirs, or u into such a neighbour."""
        for w, edge in list(self.near[u].items()):
            if self.near[u].get(w) is not edge or edge.cost.max() < FORBIDDEN:
                continue
            possible = edge.cost < FORBIDDEN
            follows, leads = bool((possible.sum(1) == 1).all()), bool((possible.sum(0) == 1).all())
            if follows and not (leads and len(self.near[u]) < len(self.near[w])):
                self._merge(w, u, possible.argmax(1), np.arange(len(possible)))
            elif leads:
                self._merge(u, w, possible.argmax(0), np.arange(possible.shape[1]))
                return True
        return False

    def _merge(self, u: int, into: int, of_node: Array, of_into: Array) -> None:
        """Strategy k of `into` becomes its `of_into[k]` together with `of_node[k]` of u, which goes."""
        link = self.near[into][u]
        del self.near[u][into], self.near[into][u]
        others = dict(self.near[u])
        costs = self._costs(into)[of_into] + self._costs(u)[of_node] + link.cost[of_into, of_node]
        if len(of_into) != len(self._costs(into)) or (of_into != np.arange(len(of_into))).any():
            self.usage[into] = {span: amounts[of_into] for span, amounts in self.usage[into].items()}
            for w, edge in list(self.near[into].items()):
                self._set_edge(into, w, _rows(edge, of_into))
                self._touch((w,))
        self.costs[into] = costs
        self._use_more(into, {span: amounts[of_node] for span, amounts in self.usage[u].items()})
        self._use_more(into, {span: amounts[of_into, of_node] for span, amounts in link.usage.items()})
        for w, edge in others.items():
            del self.near[u][w], self.near[w][u]
            self._add_edge(into, w, _rows(edge, of_node))
        self._remove(u)
        self.trail.steps.append(Merged(u, into, of_node, of_into))
        self._touch((into, *others))

    def _take_out(self, u: int) -> None:
        neighbours = list(self.near[u])
        if not neighbours and not self.usage[u]:
            cheapest = np.asarray(np.arange(len(self._costs(u))) == self._costs(u).argmin())
            self._keep(u, cheapest)
        elif len(neighbours) == 1:
            self._fold_leaf(u, neighbours[0])
        elif len(neighbours) == 2:
            self._bridge(u, *neighbours)

    def _fold_leaf(self, u: int, w: int) -> None:
        """For each strategy of its only neighbour keep the choices of u that no other one beats in cost and usage."""
        edge = self.near[w][u]
        totals = _layers(edge, [self._costs(u)], [self.usage[u]])
        if totals[0].size * len(totals[0][0]) * len(totals) > LARGEST_COMPARISON:
            return
        others = (~_beaten(totals) & (totals[0] < FORBIDDEN)).nonzero()
        if len(others[0]) <= sum(totals[0].shape):
            self._merge(u, w, others[1], others[0])

    def _bridge(self, u: int, v: int, w: int) -> None:
        """Take out a node between two others where one of its strategies is best in cost and in usage, whatever those choose."""
        first, second = self.near[v][u], self.near[u][w]
        shape = (*first.cost.shape, second.cost.shape[1])
        if np.prod(shape) > LARGEST_TABLE or shape[0] * shape[2] > 4 * (first.cost.size + second.cost.size):
            return
        spans = [*dict.fromkeys([*self.usage[u], *first.usage, *second.usage])]
        cost = np.minimum(first.cost[:, :, None] + self._costs(u)[None, :, None] + second.cost[None], FORBIDDEN)
        layers = [cost]
        for span in spans:
            amounts = np.zeros(shape, dtype=np.int64)
            if span in first.usage:
                amounts += first.usage[span][:, :, None]
            if span in self.usage[u]:
                amounts += self.usage[u][span][None, :, None]
            if span in second.usage:
                amounts += second.usage[span][None]
            layers.append(np.where(cost < FORBIDDEN, amounts, FORBIDDEN))
        least = [layer.min(1) for layer in layers]
        if len(layers) == 1:
            best = cost.argmin(1)
        else:
            ideal = np.all([layer == low[:, None] for layer, low in zip(layers, least, strict=True)], axis=0)
            if not ideal.any(1).all():
                return
            best = ideal.argmax(1)
        possible = least[0] < FORBIDDEN
        usage = {span: np.where(possible, low, 0) for span, low in zip(spans, least[1:], strict=True)}
        for neighbour in (v, w):
            del self.near[u][neighbour], self.near[neighbour][u]
        self._add_edge(v, w, Edge(least[0], usage))
        self._remove(u)
        self.trail.steps.append(Bridged(u, v, w, best))
        self._touch((v, w))

    # Rows

    def _watched(self, usage: Usage) -> dict[Span, Array]:
        """The usage in rows that can still be exceeded."""
        found: dict[Span, Array] = {}
        for span, amounts in usage.items():
            shrunk = self._shrunk(span)
            if shrunk is not None:
                found[shrunk] = found[shrunk] + amounts if shrunk in found else amounts
        return found

    def _shrunk(self, span: Span) -> Span | None:
        if span not in self.spans:
            rows = np.flatnonzero(self.active[span.rows])
            start = span.start + span.step * int(rows[0]) if len(rows) else 0
            step = span.step if len(rows) > 1 else 1
            self.spans[span] = Span(start, span.start + span.step * int(rows[-1]) + 1, step) if len(rows) else None
        return self.spans[span]

    def _watch_rows(self) -> None:
        """Note the rows that the largest usage of all would exceed; where others need no more watching, their nodes are seen again."""
        if not self.limited:
            return
        most = np.zeros(len(self.limits), dtype=np.int64)
        owners: list[tuple[int, Usage]] = [(u, usage) for u, usage in enumerate(self.usage) if usage]
        owners += [(u, edge.usage) for u, around in enumerate(self.near) for w, edge in around.items() if u < w and edge.usage]
        for _, usage in owners:
            for span, amounts in usage.items():
                most[span.rows] += amounts.max()
        if (self.limits[self.active] < 0).any():
            raise Infeasible
        active = self.active & (most > self.limits)
        changed = bool((active != self.active).any())
        if changed:
            self.active, self.spans = active, {}
        self.least_limit = int(self.limits.min(initial=FORBIDDEN))
        room: dict[Span, int] = {}
        for u, usage in owners:
            for span, amounts in usage.items():
                if span not in room:
                    room[span] = int(self.limits[span.rows].min())
                if amounts.max() > room[span] or (changed and self._shrunk(span) != span):
                    self._see_again(u)

    def _see_again(self, u: int) -> None:
        self._touch((u, *self.near[u]))
        self.pushed -= {(min(u, w), max(u, w)) for w, edge in self.near[u].items() if edge.usage}


def _sum(first: Usage, second: Usage) -> dict[Span, Array]:
    total = dict(first)
    for span, amounts in second.items():
        total[span] = total[span] + amounts if span in total else amounts
    return total


def _rows(edge: Edge, rows: Array) -> Edge:
    return Edge(edge.cost[rows], {span: amounts[rows] for span, amounts in edge.usage.items()})


def _no_more(own: Array, matrices: Iterable[Array]) -> Array:
    """better[s, t]: s never costs more than t, whatever the other ends of the edges choose.

    Every row of a matrix has a nought, so no matrix makes up for another: once s costs more than t it stays so.
    """
    most = own[:, None] - own[None, :]
    for matrix in matrices:
        most = np.minimum(most + (matrix[:, None, :] - matrix[None, :, :]).max(2), FORBIDDEN)
        if np.count_nonzero(most <= 0) == len(own):
            break  # each only itself
    return most <= 0


def _layers(edge: Edge, costs: list[Array], usages: list[Usage]) -> list[Array]:
    """Cost, then what is used in each span, for (neighbour, node)."""
    layers = [np.minimum(edge.cost + costs[0], FORBIDDEN)]
    for span in dict.fromkeys([*usages[0], *edge.usage]):
        layers.append(edge.usage.get(span, 0) + np.broadcast_to(usages[0].get(span, 0), edge.cost.shape))
    return layers


def _beaten(layers: list[Array]) -> Array:
    """beaten[v, a]: for v some b is no worse than a in every layer, and better in one or first."""
    no_worse = np.all([layer[:, :, None] <= layer[:, None, :] for layer in layers], axis=0)  # [v, b, a]
    order = np.arange(layers[0].shape[1])
    return (no_worse & (~no_worse.transpose(0, 2, 1) | (order[:, None] < order)[None])).any(1)
