"""What folding costs: a bound on all plans in which every copy of a block decides for itself, and a better plan where there is one.

Copies meet only through what one hands to the next, so that the cheapest of all plans is a walk through copies (`chain`, `solver.walks`).
Limits of memory are left out of this: the bound is sound, and close where memory is ample. Two rounds: the first, with shares of what
several readers need (`shares`) or, where tables for pairs of borders are too large for that, by messages (`solver.deposits`), says which
strategies a better plan may use, the second is exact among these. The work is limited by sizes, never by time, so that
the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoplan.graph.blocks import BlockRun
from autoplan.planner.build import Built, build_problem
from autoplan.planner.chain import NotAChain, Piece, chain_of, parted, whole
from autoplan.planner.family import Outcome
from autoplan.planner.pairwise import model_of
from autoplan.planner.problem import cost_of, restricted
from autoplan.planner.shares import Shares, relaxation
from autoplan.planner.solver.deposits import bounded
from autoplan.planner.solver.eliminate import TooWide
from autoplan.planner.solver.model import Array, Model
from autoplan.planner.solver.walks import Least, Link, TooLong, Walks
from autoplan.planner.split import FINER, folded_nodes, folded_values, split_candidates, split_terms
from autoplan.planner.terms import Terms, ValueTerms

Walk = tuple[dict[int, int], tuple[tuple[dict[int, int], ...], ...]]
"""What the rest chooses by node, and by run what each later copy does."""

MOST_BY_TABLES = 6_000  # strategies of the folded problem: beyond, tables for pairs of borders are too large
MOST_STRATEGIES = 60_000  # of all pieces: beyond, what pairs of them cost takes gigabytes


@dataclass(frozen=True, slots=True)
class Unfolded:
    """What is known of plans whose copies differ: they cost at most `loss` less than the folded plan, in units of its problem.

    `walk` is a cheapest one, whatever memory it takes, if it is worth looking at: by node of `parts` what the first copies
    and all outside of copies choose, and by run what each later copy does in place of the second.
    """

    loss: int
    parts: Built
    walk: Walk | None = None


def unfolded(start: Built, found: Outcome, runs: Sequence[BlockRun], limit_bytes: int, *, thorough: bool = True) -> Unfolded | None:
    """What copies that differ may gain over the best folded plan, None where it would be too much work to tell.

    `start` is the folded problem in which nothing is gathered ahead nor recomputed. Unless `thorough`, the first round is the last.
    """
    try:
        return _Bounding(start, found, runs, limit_bytes).result(thorough=thorough)
    except TooLong:
        return None


class _Bounding:
    """The pieces of the problem, what the folded plan costs in them, and bounds.

    Gathered ahead, under any weights, costs least: what is proved of that holds of all. Nothing recomputed costs less than something.
    Raises TooLong where the pieces have too many strategies.
    """

    def __init__(self, start: Built, found: Outcome, runs: Sequence[BlockRun], limit_bytes: int) -> None:
        self.start, self.found, self.runs = start, found, runs
        prices, charged = start.terms.prices, found.terms or start.terms
        waiting = (found.waiting or dict.fromkeys(sorted(prices.prefixes), 0.0)) if prices.hides else None

        def weighed(terms: Terms) -> Terms:
            return (terms if waiting is None else terms.ahead(waiting)).hosted(found.host)

        def split(parts: Sequence[BlockRun]) -> Built:
            return build_problem(weighed(split_terms(charged, parts)), limit_bytes)

        try:
            self.parts = split(parted(runs))
            self.chain = chain_of(self.parts, runs)
        except NotAChain:
            if sum(map(len, split_candidates(start.candidates, ()).strategies)) > MOST_STRATEGIES:
                raise TooLong from None
            self.parts = split(())
            self.chain = whole(self.parts)
        terms = self.parts.terms
        self.pieces = (self.chain.rest, *self.chain.copies)
        if sum(piece.problem.strategies for piece in self.pieces) > MOST_STRATEGIES:
            raise TooLong
        self.of_folded = folded_nodes(start.terms, terms)
        self.of_value = {now.name: _positions(before, now, self.of_folded) for before, now in folded_values(start.terms, terms)}
        self.folded = {value.name: value for value in start.problem.values}
        self.choice = tuple(found.solution.choice[node] for node in self.of_folded)
        least = build_problem(weighed(charged), limit_bytes)
        above = found.solution.cost - cost_of(least.problem, found.solution.choice)
        self.above = max(0, above - start.terms.rounding_of_starts)  # no more than that is only rounding
        self.costs = [cost_of(piece.problem, [self.choice[node] for node in piece.nodes]) for piece in self.pieces]
        self.here = sum(count * cost for cost, count in zip(self.costs, (1, *self.chain.counts), strict=True))
        self.enough = self.here - FINER * start.problem.tie  # what is proved to cost more than this is no better

    def result(self, *, thorough: bool) -> Unfolded:
        """After one round or two."""
        first = self._by_tables() or self._by_messages()
        if first.value > self.enough or not thorough:
            return Unfolded(self._loss(first.value), self.parts)
        kept = self._kept(first.least() if isinstance(first, Walks) else first)
        try:
            exact = self._walks([model_of(restricted(piece.problem, left)) for piece, left in zip(self.pieces, kept, strict=True)])
        except (TooWide, TooLong):
            everything = [[np.arange(len(node.costs)) for node in piece.problem.nodes] for piece in self.pieces]
            return Unfolded(self._loss(first.value), self.parts, self._walk(first, everything) if isinstance(first, Walks) else None)
        value = max(first.value, exact.value)
        return Unfolded(self._loss(value), self.parts, self._walk(exact, kept) if value <= self.enough else None)

    def _loss(self, proved: int) -> int:
        return self.above + max(0, self.here - proved) // FINER

    def _links(self, copies: Sequence[Model]) -> list[Link]:
        """The copies of pieces, whose nodes come first in their models."""
        ends = zip(copies, self.chain.copies, self.chain.counts, self.chain.rest.links, strict=True)
        return [Link(model, piece.entry, piece.exit, count, *link) for model, piece, count, link in ends]

    def _walks(self, models: Sequence[Model]) -> Walks:
        rest, *copies = models
        return Walks(rest, self._links(copies))

    def _by_tables(self) -> Walks | None:
        """Readers pay shares; what all copies read costs nothing where that would link too much. None where there is too much to link."""
        if self.start.problem.strategies > MOST_BY_TABLES:
            return None
        models = [relaxation(piece.problem, self._shares(piece)) for piece in self.pieces]
        try:
            try:
                return self._walks(models)
            except TooWide:
                return self._walks([_without_edges(model, piece.shared) for model, piece in zip(models, self.pieces, strict=True)])
        except (TooWide, TooLong):
            return None

    def _by_messages(self) -> Least:
        """As close as messages come."""
        rest, *copies = (model_of(piece.problem) for piece in self.pieces)
        return bounded(rest, self._links(copies), self.costs)

    def _shares(self, piece: Piece) -> dict[str, Shares]:
        """The shares that bound the folded problem, of the readers in a piece."""
        found = {}
        for value in piece.problem.values:
            name, positions = self.of_value[value.name]
            known = Shares.of(self.folded[name], self.found.shares.get(name))
            found[value.name] = known.among([positions[k] for k in piece.readers[value.name]])
        return found

    def _kept(self, least: Least) -> list[list[Array]]:
        """By piece and node, the strategies that a plan may use that is no dearer than the folded one; the same wherever pieces meet."""
        below = (least.rest, *least.copies)
        kept = [
            [np.flatnonzero(costs <= self.here) for costs in bounds[: len(piece.nodes)]]
            for bounds, piece in zip(below, self.pieces, strict=True)
        ]
        for copy, piece, ends in zip(kept[1:], self.chain.copies, self.chain.rest.links, strict=True):
            meeting = [copy[piece.entry], copy[piece.exit], *(kept[0][end] for end in ends)]
            union = np.unique(np.concatenate(meeting))
            copy[piece.entry] = copy[piece.exit] = union
            for end in ends:
                kept[0][end] = union
        return kept

    def _walk(self, walks: Walks, kept: Sequence[Sequence[Array]]) -> Walk:
        """A cheapest walk among the strategies that were kept, by the nodes of the parts."""

        def chosen(piece: Piece, left: Sequence[Array], choice: Sequence[int]) -> dict[int, int]:
            return {node: int(left[k][choice[k]]) for k, node in enumerate(piece.nodes)}

        rest, copies = walks.choices()
        later = tuple(
            tuple(chosen(piece, left, choice) for choice in choices)
            for piece, left, choices in zip(self.chain.copies, kept[1:], copies, strict=True)
        )
        return chosen(self.chain.rest, kept[0], rest), later or ((),) * len(self.runs)


def _positions(before: ValueTerms, now: ValueTerms, of_folded: Sequence[int]) -> tuple[str, list[int]]:
    """The name of the folded value, and by reader of a part of it the position of the reader there."""
    return before.name, [before.reading.index((of_folded[node], operand)) for node, operand in now.reading]


def _without_edges(model: Model, nodes: frozenset[int]) -> Model:
    """The model where some nodes choose for themselves alone, which costs no more."""
    return replace(model, edges={pair: edge for pair, edge in model.edges.items() if nodes.isdisjoint(pair)})
