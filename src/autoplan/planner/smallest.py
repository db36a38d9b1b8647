"""How little memory a plan can take, whatever it costs: branch and bound over the numbers of copies that recompute."""

from __future__ import annotations

import heapq
from dataclasses import replace
from itertools import count
from time import perf_counter

from autoplan.errors import OutOfTime
from autoplan.planner.build import Built
from autoplan.planner.family import Family, Outcome
from autoplan.planner.numbers import Box
from autoplan.planner.solve import smallest_memory
from autoplan.planner.solver.search import UNLIMITED


def smallest(start: Built, limit_bytes: int, time_limit_s: float) -> Outcome | None:
    """The choice, and the copies that recompute, whose peak of memory is least; None where nothing is possible.

    The solution's `cost` and `bound` are in memory units. Raises OutOfTime when the time limit passes before any choice is found.
    """
    return Smallest(Family(start, limit_bytes), time_limit_s).run()


class Smallest:
    """All boxes halved, each bounded by the problem of its least terms."""

    def __init__(self, family: Family, time_limit_s: float) -> None:
        self.family, self.time_limit_s = family, time_limit_s
        self.deadline = perf_counter() + time_limit_s

    def run(self, enough: int | None = None) -> Outcome | None:
        """Many and few copies first, since one of both is best most of the time.

        The search ends as soon as the least is known to be at most `enough`, or above.
        """
        family, order = self.family, count()
        root = family.root()
        ends = dict.fromkeys((root.most, root.least))
        boxes = [(0, next(order), Box(numbers, numbers)) for numbers in ends]
        boxes += [(0, next(order), box) for box in family.copies.pieces(root) if box.least not in ends or not box.is_one]
        best: Outcome | None = None
        proved: list[int] = []  # about the boxes that are not to be looked at again
        while boxes and (best is None or boxes[0][0] < best.solution.cost):
            if enough is not None and not boxes[0][0] <= enough < (UNLIMITED if best is None else best.solution.cost):
                proved.append(boxes[0][0])
                break
            bound, _, box = heapq.heappop(boxes)
            left_s = self.deadline - perf_counter()
            if best is not None and left_s <= 0:
                proved.append(bound)
                break
            built = family.fixed(box.least) if box.is_one else family.below(box)
            try:
                solution = smallest_memory(built.problem, max(1.0, left_s / (3 if best is None else 2)), enough=enough)
            except OutOfTime:
                proved.append(bound)
                continue
            if solution is None:
                continue
            bound = max(bound, solution.bound)
            if not box.is_one and left_s > 0:
                for part in box.halves():
                    heapq.heappush(boxes, (bound, next(order), part))
                continue
            proved.append(bound)
            if box.is_one and (best is None or solution.cost < best.solution.cost):
                best = Outcome(box.least, built, solution)
        if best is None and proved:
            raise OutOfTime(f"no plan found in {self.time_limit_s:g} s")
        if best is None:
            return None
        bound = min([best.solution.cost, *proved])
        return replace(best, solution=replace(best.solution, bound=bound, status="optimal" if best.solution.cost <= bound else "feasible"))
