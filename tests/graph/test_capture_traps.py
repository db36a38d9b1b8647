"""What goes wrong in naive captures: lost values, lost gradients, hidden writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.errors import TargetError
from autoplan.graph import capture, run_graph, tensors_of


class Head(nn.Module):
    """A linear layer and a function of its result: the smallest model around one trap."""

    frequencies: Tensor

    def __init__(self, then: Callable[..., Tensor], size: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(size, size)
        self.register_buffer("frequencies", torch.arange(1.0, size + 1), persistent=False)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.linear(x)).square().mean()


def example() -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def test_constants_keep_their_values(same_as_eager: Any) -> None:
    graph = same_as_eager(Head(lambda m, y: y * torch.tensor([1.0, 2, 3, 4, 5, 6])), example())
    (constant,) = graph.constants.values()
    assert constant.tolist() == [1, 2, 3, 4, 5, 6] and constant.device.type == "cpu"


def test_constants_of_a_model_on_meta_keep_their_values() -> None:
    with torch.device("meta"):
        module = Head(lambda m, y: y * torch.tensor([2.0], device=y.device))
    graph = capture(module, (example(),), mode="train")
    assert [tensor.tolist() for tensor in graph.constants.values()] == [[2.0]]


def test_a_constant_without_values_names_the_line_that_reads_it() -> None:
    module = Head(lambda m, y: y * m.scale)
    module.scale = torch.ones(6, device="meta")  # type: ignore[assignment]
    with pytest.raises(TargetError, match=r"test_capture_traps.py:\d+: the values of scale are lost"):
        capture(module, (example(),), mode="train")


def test_non_persistent_buffers_are_buffers(same_as_eager: Any) -> None:
    graph = same_as_eager(Head(lambda m, y: y * m.frequencies.cos()), example())
    assert list(graph.buffers) == ["frequencies"] and not graph.constants


def test_what_leaves_a_no_grad_region_is_detached(same_as_eager: Any) -> None:
    def scaled(module: Head, y: Tensor) -> Tensor:
        with torch.no_grad():
            scale = module.linear.weight.abs().amax() + y.abs().amax()
        return y / scale

    graph = same_as_eager(Head(scaled), example())
    assert [node.address for node in graph.nodes if node.name == "aten.detach"] == ["/detach"]
    inside = graph.by_address["/amax"]
    assert not graph.values[inside.outputs[0]].needs_grad


def test_gradients_switched_on_inside_no_grad_flow_out(same_as_eager: Any) -> None:
    def nested(module: Head, y: Tensor) -> Tensor:
        with torch.no_grad():
            scale = y.abs().amax()
            with torch.enable_grad():
                z = y * scale
            offset = z.mean()
        return z + offset

    same_as_eager(Head(nested), example())


def test_a_no_grad_region_without_gradients_needs_no_detach(same_as_eager: Any) -> None:
    def rotary(module: Head, y: Tensor) -> Tensor:
        with torch.no_grad():
            cos = module.frequencies.cos()
        return y * cos

    graph = same_as_eager(Head(rotary), example())
    assert not any(node.name == "aten.detach" for node in graph.nodes)


def test_tied_weights_are_one_parameter_with_aliases(same_as_eager: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(16, 8)
            self.head = nn.Linear(8, 16, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return F.cross_entropy(self.head(self.embed(tokens)).flatten(0, 1), tokens.flatten())

    graph = same_as_eager(Tied(), torch.arange(6).view(2, 3))
    (parameter,) = graph.parameters
    assert (parameter.fqn, parameter.aliases) == ("embed.weight", ("head.weight",))
    readers = {node.address for node, _ in graph.consumers[parameter.value]}
    assert readers == {"embed/embedding", "head/linear"}


def test_factories_carry_the_capture_device_and_run_on_another() -> None:
    with torch.device("meta"):
        module = Head(lambda m, y: y + torch.arange(6, device=y.device) + y.to(y.device))
    graph = capture(module, (example(),), mode="train")
    devices = {str(value) for node in graph.nodes for value in (*node.args, *node.kwargs.values()) if isinstance(value, torch.device)}
    assert devices <= {"cpu"}
    tensors = {**tensors_of(graph, module, {"x": example().to("meta")})}
    assert graph.loss is not None
    assert run_graph(graph, tensors, device="meta")[graph.loss].device.type == "meta"


IN_PLACE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "add": lambda m, y: y.clone().add_(1.0, alpha=2),
    "relu": lambda m, y: F.relu(y + 1, inplace=True),
    "an_integer_table_in_another_dtype": lambda m, y: y * torch.zeros(6, dtype=torch.int32).add_(3.7 > 1),
    "masked_fill": lambda m, y: (y * 1).masked_fill_(m.frequencies > 3, 0.5),
    "the_base_is_used_later": lambda m, y: _last(z := y * 2, z.mul_(3), z + 1),
    "copy_into_a_fresh_tensor": lambda m, y: torch.empty(4, 6, dtype=torch.float64).copy_(y).float(),
    "copy_broadcasts": lambda m, y: torch.zeros(4, 6).copy_(y[0]),
    "fill_and_zero": lambda m, y: y + torch.empty(6).fill_(2.0) + torch.ones(6).zero_(),
    "fill_with_a_tensor": lambda m, y: _last(z := torch.zeros(4, 6), z[1].fill_(y[0, 0]), z),
    "a_slice": lambda m, y: _last(z := torch.zeros(4, 6), z[:, 1:].copy_(y[:, :-1]), z[:, 0].fill_(2.0), z * y),
    "a_slice_of_a_slice": lambda m, y: _last(z := y * 1, z[1:][:, 2:4].mul_(5), z),
    "through_a_view": lambda m, y: _last(z := y * 1, z.view(2, 12)[0].add_(1), z),
    "through_a_transpose": lambda m, y: _last(z := y * 1, z.t()[0].mul_(7), z.permute(1, 0)[1].mul_(3), z),
    "a_view_taken_before": lambda m, y: _last(z := y * 1, v := z[:2], z.add_(1), v * 2),
    "a_view_of_a_view_taken_before": lambda m, y: _last(z := y * 1, v := z[:3], w := v[:, 1], z[0].add_(1), w * 2),
    "an_output_of_topk": lambda m, y: _last(top := y.softmax(-1).topk(2)[0], top.div_(top.sum(-1, keepdim=True)), top),
    "index_put": lambda m, y: _last(z := y * 1, z.index_put_((torch.tensor([0, 2]),), y.new_ones(6)), z),
    "detach_then_write": lambda m, y: y * y.detach().clone().add_(1),
}  # fmt: skip


def _last(*values: Any) -> Any:
    return values[-1]


@pytest.mark.parametrize("trap", IN_PLACE)
def test_in_place_ops_become_functional(trap: str, same_as_eager: Any) -> None:
    graph = same_as_eager(Head(IN_PLACE[trap]), example())
    assert not any(node.name.endswith("_") for node in graph.nodes)


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "an expanded view": (lambda m, y: _last(z := torch.zeros(1, 6), z.expand(4, 6)[0].add_(1), y + z), "in-place op on a view that aten.expand"),
    "a piece of a split": (lambda m, y: _last(z := y.detach() * 1, z.chunk(2, -1)[0].add_(1), y + z), "in-place op on one of the views"),
    "a parameter": (lambda m, y: _halved(m.linear.weight, y), "in-place op on parameter linear.weight"),
    "the data of a parameter": (lambda m, y: _last(m.linear.weight.data.mul_(0.5), y), "in-place op on constant"),
    "no_grad on a tensor with a gradient": (lambda m, y: _clamp(y), "in-place op under no_grad on a tensor that needs"),
}  # fmt: skip


def _halved(weight: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        weight.mul_(0.5)
    return y


def _clamp(y: Tensor) -> Tensor:
    z = y * 1
    with torch.no_grad():
        z.clamp_(0)
    return z


@pytest.mark.parametrize("trap", REFUSED)
def test_in_place_ops_without_a_functional_form_are_refused_with_their_line(trap: str) -> None:
    then, message = REFUSED[trap]
    with pytest.raises(TargetError, match=message) as caught:
        capture(Head(then), (example(),), mode="train")
    assert "test_capture_traps.py:" in str(caught.value) and ".clone()" in str(caught.value)


def test_writing_to_an_input_is_refused() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.add_(1)).sum()

    with pytest.raises(TargetError, match="in-place op on input x"):
        capture(Writes(), (example(),), mode="train")


def test_batch_norm_gives_its_new_statistics_as_outputs(same_as_eager: Any) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = module

        def forward(self, x: Tensor) -> Tensor:
            return (self.body(x) + self.body(2 * x)).mean()

    graph = same_as_eager(Twice(), torch.randn(2, 3, 8, 8))
    assert sorted(graph.mutations) == ["body.1.num_batches_tracked", "body.1.running_mean", "body.1.running_var"]
    norms = [node for node in graph.nodes if node.name == "aten.batch_norm"]
    assert [len(node.outputs) for node in norms] == [3, 3]
    assert norms[1].inputs[3:] == norms[0].outputs[1:], "the second call reads what the first one wrote"
    assert set(norms[1].outputs[1:]) <= set(graph.mutations.values())


def test_batch_norm_in_inference_writes_nothing() -> None:
    graph = capture(nn.BatchNorm1d(4), (torch.ones(2, 4),), mode="infer")
    assert not graph.mutations and [len(node.outputs) for node in graph.nodes] == [1]


def test_a_buffer_that_forward_writes_to_is_a_mutation(same_as_eager: Any) -> None:
    def counts(module: Head, y: Tensor) -> Tensor:
        module.frequencies[0] += 1
        return y * module.frequencies

    graph = same_as_eager(Head(counts), example())
    assert list(graph.mutations) == ["frequencies"]


def test_checkpointed_regions_are_inlined(same_as_eager: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    same_as_eager(Head(lambda m, y: checkpoint(lambda z: (z * z).sin(), y, use_reentrant=False)), example())


def test_assertions_leave_no_trace() -> None:
    def checked(module: Head, y: Tensor) -> Tensor:
        torch._assert_async((y.abs() < 1e9).all(), "too large")
        return y.abs()

    addresses = [node.address for node in capture(Head(checked), (example(),), mode="train").nodes]
    assert addresses == ["linear/linear", "/abs", "/square", "/mean"]


def test_autocast_is_refused_and_names_its_module() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.linear(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).float().sum()

    with pytest.raises(TargetError, match=r"torch.autocast in inner.*\n.*test_capture_traps.py:\d+; remove autocast and set --precision"):
        capture(Outer(), (example(),), mode="train")


def test_autocast_that_is_off_is_inlined(same_as_eager: Any) -> None:
    def careful(module: Head, y: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return y.float() * 2

    same_as_eager(Head(careful), example())


def test_split_outputs_are_values_of_one_node(same_as_eager: Any) -> None:
    graph = same_as_eager(Head(lambda m, y: (lambda a, b, c: a * b + c)(*y.split(2, -1))), example())
    split = graph.by_address["/split"]
    assert [graph.values[output].address for output in split.outputs] == ["/split[0]", "/split[1]", "/split[2]"]


def test_complex_values_carry_gradients(same_as_eager: Any) -> None:
    def rotary(module: Head, y: Tensor) -> Tensor:
        angles = torch.polar(torch.ones(3), module.frequencies[:3])
        return torch.view_as_real(torch.view_as_complex(y.view(4, 3, 2)) * angles).flatten(1)

    same_as_eager(Head(rotary), example())


def test_a_cumulative_average_of_statistics_is_captured_without_its_value(same_as_eager: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, momentum=None))
    model(example())  # the second batch weighs a half

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return (self.model(x) * torch.arange(6.0)).sigmoid().mean()

    graph = same_as_eager(Mean(), 2 * example())
    assert sorted(graph.mutations) == ["model.1.num_batches_tracked", "model.1.running_mean", "model.1.running_var"]
