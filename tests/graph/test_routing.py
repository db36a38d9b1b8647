"""Mixtures of experts are recognised in the forms people write them in, and stay what they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph import capture, input_leaves, tensors_of
from autoplan.graph.interpret import run_graph

EXPERTS, DIM, TOP_K, TOKENS = 3, 8, 2, 10
Order = Callable[[Tensor], tuple[Tensor, Tensor]]


class Mixture(nn.Module):
    """`take(x, order)` brings tokens to the experts' order, `give(rows, order, x)` brings rows back."""

    def __init__(self, take: Callable[..., Tensor], give: Callable[..., Tensor], count: Callable[..., Tensor]) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, DIM, DIM))
        self.bias = nn.Parameter(torch.randn(EXPERTS, DIM))
        self.take, self.give, self.count = take, give, count

    def forward(self, x: Tensor) -> Tensor:
        scores, ids = self.gate(x).topk(TOP_K, -1)
        flat = ids.flatten()
        sorted_ids, order = flat.sort()
        ends = self.count(flat, sorted_ids).cumsum(0).to(torch.int32)
        rows = F.grouped_mm(self.take(x, order), self.up, offs=ends) + self.bias[sorted_ids]
        rows = rows * scores.flatten()[order].unsqueeze(-1)
        return self.give(rows, order, x).square().mean()


def by_index(x: Tensor, order: Tensor) -> Tensor:
    return x[order // TOP_K]


def by_gather(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(0, (order // TOP_K).unsqueeze(-1).expand(-1, DIM))


def by_index_select(x: Tensor, order: Tensor) -> Tensor:
    return x.index_select(0, order.div(TOP_K, rounding_mode="floor"))


def by_inverse(rows: Tensor, order: Tensor, x: Tensor) -> Tensor:
    return rows[order.argsort()].view(-1, TOP_K, DIM).sum(1)


def by_put(rows: Tensor, order: Tensor, x: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.shape[0])
    return rows[inverse].view(-1, TOP_K, DIM).sum(1)


def by_scatter(rows: Tensor, order: Tensor, x: Tensor) -> Tensor:
    return x.scatter_add(0, (order // TOP_K).unsqueeze(-1).expand(-1, DIM), rows)


def by_index_add(rows: Tensor, order: Tensor, x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(0, order // TOP_K, rows)


def of_ids(ids: Tensor, sorted_ids: Tensor) -> Tensor:
    return torch.histc(ids.float(), bins=EXPERTS, min=0, max=EXPERTS)


def of_sorted_ids(ids: Tensor, sorted_ids: Tensor) -> Tensor:
    return torch.histc(sorted_ids.float(), bins=EXPERTS, min=0, max=EXPERTS - 1)


def captured(module: nn.Module, x: Tensor):  # type: ignore[no-untyped-def]
    return capture(module, (x,), mode="train")


@pytest.mark.parametrize("count", [of_ids, of_sorted_ids])
@pytest.mark.parametrize("give", [by_inverse, by_put, by_scatter, by_index_add])
@pytest.mark.parametrize("take", [by_index, by_gather, by_index_select])
def test_a_mixture_becomes_one_op_with_the_same_result(
    take: Callable[..., Tensor], give: Callable[..., Tensor], count: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    module, x = Mixture(take, give, count), torch.randn(TOKENS, DIM)
    graph = captured(module, x)
    ops = [node.op for node in graph.nodes]
    assert ops.count("autoplan.routed_experts.default") == 1
    assert not {"aten.sort.default", "aten.argsort.default", "aten.histc.default", "autoplan.grouped_mm.default"} & set(ops)
    found = run_graph(graph, tensors_of(graph, module, input_leaves(module.forward, (x,), {})))[graph.loss]
    wanted = module(x)
    torch.testing.assert_close(found, wanted)
    parameters = list(module.parameters())
    for mine, theirs in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(mine, theirs)


def shuffled(rows: Tensor, order: Tensor, x: Tensor) -> Tensor:
    return rows.view(-1, TOP_K, DIM).sum(1)  # the order is never undone


def mixed(rows: Tensor, order: Tensor, x: Tensor) -> Tensor:
    return by_inverse(rows.cumsum(0), order, x)  # a row depends on those before it


def one_too_many(ids: Tensor, sorted_ids: Tensor) -> Tensor:
    return torch.histc(sorted_ids.float(), bins=EXPERTS, min=0, max=2 * EXPERTS)  # two ids share a bin


@pytest.mark.parametrize(("give", "count"), [(shuffled, of_ids), (mixed, of_ids), (by_inverse, one_too_many)])
def test_what_is_no_function_of_each_row_stays_as_it_is(give: Callable[..., Tensor], count: Callable[..., Tensor]) -> None:
    graph = captured(Mixture(by_index, give, count), torch.randn(TOKENS, DIM))
    assert "autoplan.routed_experts.default" not in {node.op for node in graph.nodes}


def test_an_order_that_others_need_too_stays_for_them() -> None:
    class WithLoad(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            ids = self.gate(x).topk(TOP_K, -1)[1].flatten()
            load = of_ids(ids, ids)
            return super().forward(x) + (load * load).mean()

    ops = {node.op for node in captured(WithLoad(by_index, by_put, of_ids), torch.randn(TOKENS, DIM)).nodes}
    assert {"autoplan.routed_experts.default", "aten.histc.default"} <= ops
