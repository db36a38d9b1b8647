"""What capture makes of a model: inputs, state, addresses, the loss."""

from __future__ import annotations

import resource
import time
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.errors import TargetError
from autoplan.graph import Graph, capture, input_leaves
from autoplan.models.gpt2 import build as build_gpt2
from autoplan.models.llama import build as build_llama

TINY_LLAMA = dict(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=64, batch=4, seq=16)
TINY_GPT2 = dict(dim=32, n_layers=2, n_heads=4, vocab_size=64, max_seq=16, batch=4, seq=16, dropout=0.0)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x))).square().mean()


def value_named(graph: Graph, address: str) -> Any:
    return next(value for value in graph.values if value.address == address)


def test_ops_are_addressed_by_module_and_name() -> None:
    graph = capture(MLP(), (torch.ones(4, 8),), mode="train")
    assert [node.address for node in graph.nodes] == ["up/linear", "/relu", "down/linear", "/square", "/mean"]
    assert [node.op for node in graph.nodes][:2] == ["aten.linear.default", "aten.relu.default"]
    assert all(node.source.startswith("tests/graph/test_capture.py:") or "test_capture.py:" in node.source for node in graph.nodes)


def test_a_module_called_twice_counts_its_ops_on() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x) + 1).sum()

    addresses = [node.address for node in capture(Twice(), (torch.ones(2, 8),), mode="train").nodes]
    assert addresses == ["inner/linear", "/add", "inner/linear#1", "/sum"]


@pytest.mark.parametrize(("build", "options"), [(build_llama, TINY_LLAMA), (build_gpt2, TINY_GPT2)])
def test_shipped_models_compute_what_eager_computes(build: Any, options: dict[str, Any], same_as_eager: Any) -> None:
    torch.manual_seed(0)
    module, _, _ = build(**options)
    tokens = torch.randint(0, 64, (4, 16))
    graph = same_as_eager(module, tokens, tokens.roll(-1, 1))
    addresses = [node.address for node in graph.nodes]
    assert len(set(addresses)) == len(addresses)
    assert [graph.values[i].address for i in graph.inputs] == ["inputs/tokens", "inputs/labels"]


def test_an_8b_model_is_captured_without_its_weights() -> None:
    with torch.device("meta"):
        module, args, kwargs = build_llama()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    graph = capture(module, args, kwargs, mode="train")
    assert time.perf_counter() - start < 60  # 4 to 6 s alone on two cores
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB
    assert sum(value.bytes for value in graph.values if value.kind == "parameter") == 4 * 8_030_261_248


def test_the_module_comes_back_as_it_was() -> None:
    module = nn.Sequential(MLP(), nn.BatchNorm1d(3))
    module[1].eval()
    state = {name: (id(tensor), tensor.device) for name, tensor in module.state_dict(keep_vars=True).items()}
    with pytest.raises(TargetError):
        capture(module, (torch.ones(4, 8),), mode="train")  # fails: batch norm of a scalar
    assert state == {name: (id(tensor), tensor.device) for name, tensor in module.state_dict(keep_vars=True).items()}
    assert module.training and module[0].training and not module[1].training


def test_real_and_meta_modules_give_the_same_graph() -> None:
    with torch.device("meta"):
        on_meta = capture(MLP(), (torch.ones(4, 8),), mode="train")
    real = capture(MLP(), (torch.ones(4, 8),), mode="train")
    assert on_meta == real


def test_inputs_are_named_by_argument_and_path() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, batch: dict[str, Any], scale: float, *rest: Tensor, mask: Tensor | None = None) -> Tensor:
            x = self.linear(batch["tokens"]) * scale + batch["pair"][1] + rest[0]
            return (x * mask).sum() if mask is not None else x.sum()

    t = torch.ones(2, 4)
    args, kwargs = ({"tokens": t, "pair": (t.clone(), t.clone())}, 2.0, t.clone()), {"mask": t.clone()}
    graph = capture(Nested(), args, kwargs, mode="train")
    names = [graph.values[i].address for i in graph.inputs]
    assert names == ["inputs/batch.tokens", "inputs/batch.pair.0", "inputs/batch.pair.1", "inputs/rest.0", "inputs/mask"]
    assert [node.args[1] for node in graph.nodes if node.address == "/mul"] == [2.0]
    leaves = input_leaves(Nested().forward, args, kwargs)
    assert [f"inputs/{name}" for name, leaf in leaves.items() if isinstance(leaf, Tensor)] == names


def test_keywords_in_any_order_give_the_same_graph() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.linear(a).sum() - b.sum()

    a, b = torch.ones(2, 4), torch.ones(3)
    module = Two()
    assert capture(module, (), {"b": b, "a": a}, mode="train") == capture(module, (a, b), mode="train")


def test_inputs_and_parameters_that_nothing_reads_are_still_listed() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.spare = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.used(x).sum()

    graph = capture(Unused(), (torch.ones(2, 4), torch.ones(3)), mode="train")
    assert [p.fqn for p in graph.parameters] == ["used.weight", "used.bias", "spare.weight", "spare.bias"]
    assert len(graph.inputs) == 2


class Result(NamedTuple):
    logits: Tensor
    loss: Tensor


class TwoOutputs(nn.Module):
    """Returns its loss in the structure under test; the logits' scalar comes first."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        logits = self.linear(x)
        return self.wrap(logits.mean(), logits.square().mean())


@pytest.mark.parametrize(
    ("wrap", "address"),
    [
        (lambda logits, loss: {"logits": logits, "loss": loss}, "/mean#1"),
        (lambda logits, loss: Result(logits, loss), "/mean#1"),
        (lambda logits, loss: (logits, loss), "/mean"),
        (lambda logits, loss: [None, {"scores": (logits, loss)}], "/mean"),
    ],
)
def test_the_loss_is_the_one_called_loss_else_the_first_scalar(wrap: Any, address: str) -> None:
    graph = capture(TwoOutputs(wrap), (torch.ones(2, 4),), mode="train")
    assert graph.loss is not None and graph.outputs == (graph.loss,) and graph.output_names == ("loss",)
    assert graph.values[graph.loss].address == address


def test_ordinals_do_not_depend_on_which_outputs_are_kept() -> None:
    module = TwoOutputs(lambda logits, loss: {"logits": logits, "loss": loss})
    kept = capture(module, (torch.ones(2, 4),), mode="train", keep_outputs=True)
    assert kept.output_names == ("logits", "loss")
    assert kept.loss is not None and kept.values[kept.loss].address == "/mean#1"
    dropped = capture(module, (torch.ones(2, 4),), mode="train")
    assert {node.address for node in kept.nodes} - {node.address for node in dropped.nodes} == {"/mean"}


def test_inference_keeps_all_outputs_and_needs_no_gradients() -> None:
    module = TwoOutputs(lambda logits, loss: (logits, {"rest": loss}))
    graph = capture(module, (torch.ones(2, 4),), mode="infer")
    assert graph.output_names == ("output.0", "output.1.rest")
    assert graph.loss is None and not any(value.needs_grad for value in graph.values)
    assert all(parameter.trainable for parameter in graph.parameters)


def test_dropout_depends_on_the_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Flatten(0), nn.Linear(8, 1), nn.Flatten(0))
    infer = capture(module, (torch.ones(2, 4),), mode="infer")
    assert next(node.args[1:] for node in infer.nodes if node.name == "aten.dropout") == (0.5, False)


def test_gradients_are_needed_only_downstream_of_trainable_parameters() -> None:
    module = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Flatten(0))
    module[0].weight.requires_grad_(False)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = module

        def forward(self, tokens: Tensor) -> Tensor:
            y = self.body(tokens)
            return y.sum() + (y.detach() * 2).sum() + y.argmax().float()

    graph = capture(Loss(), (torch.zeros(2, 3, dtype=torch.long),), mode="train")
    needs = {node.address: graph.values[node.outputs[0]].needs_grad for node in graph.nodes}
    assert needs == {
        "body.0/embedding": False, "body.1/linear": True, "body.2/flatten": True, "/sum": True, "/detach": False, "/mul": False,
        "/sum#1": False, "/add": True, "/argmax": False, "/to": False, "/add#1": True,
    }  # fmt: skip
    assert [p.trainable for p in graph.parameters] == [False, True, True]


def test_attributes_that_forward_sets_do_not_stay() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.cache = {"x": x.shape}
            return self.linear(x).sum()

    module = Counts()
    capture(module, (torch.ones(2, 4),), mode="train")
    assert module.calls == 0 and not hasattr(module, "cache")
