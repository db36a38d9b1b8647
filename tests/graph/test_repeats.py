"""Repeated blocks are exported twice and copied: the graph is the one that exporting every copy gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoplan.graph import Graph, capture
from autoplan.graph.convert import convert
from autoplan.graph.repeats import Repeats
from autoplan.models.gpt2 import build as build_gpt2
from autoplan.models.llama import build as build_llama

DEPTH = 6
TINY_LLAMA = dict(dim=32, n_layers=DEPTH, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=64, batch=4, seq=16)
TINY_GPT2 = dict(dim=32, n_layers=DEPTH, n_heads=4, vocab_size=64, max_seq=16, batch=4, seq=16, dropout=0.1)
ONES = (torch.ones(4, 8),)


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each export that was converted: how many calls of blocks it has left out."""
    left_out: list[int] = []

    def recorded(*args: Any, blocks: Any = (), **kwargs: Any) -> Graph:
        graph = convert(*args, blocks=blocks, **kwargs)
        left_out.append(sum(bool(call.repeats) for call in blocks))
        return graph

    monkeypatch.setattr(import_module("autoplan.graph.capture"), "convert", recorded)  # the package's `capture` is the function
    return left_out


def same_graph(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, mode: Any = "train") -> Graph:
    """The captured graph, which is field by field the one of every copy exported."""
    short = capture(module, args, kwargs, mode=mode)
    whole = capture(module, args, kwargs, mode=mode, every_copy=True)
    for field in fields(Graph):
        if field.name != "constants":
            assert getattr(short, field.name) == getattr(whole, field.name), field.name
    assert short.constants.keys() == whole.constants.keys()
    assert all(torch.equal(short.constants[value], constant) for value, constant in whole.constants.items())
    return short


class Block(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.linear(x))


class Stack(nn.Module):
    """The blocks one after another, then a loss."""

    def __init__(self, block: Callable[[int], nn.Module] = lambda i: Block(), depth: int = DEPTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block(i) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.sum()


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(("build", "options"), [(build_llama, TINY_LLAMA), (build_gpt2, TINY_GPT2)])
def test_shipped_models_are_exported_in_short(build: Any, options: dict[str, Any], mode: str, exported: list[int]) -> None:
    module, args, kwargs = build(**options)
    same_graph(module, args, kwargs, mode)
    assert exported == [DEPTH - 2, 0]


CONFIG = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=DEPTH, num_attention_heads=4, vocab_size=64)
DECODER = CONFIG | dict(num_key_value_heads=2, max_position_embeddings=64, use_cache=False)
HUGGING_FACE = {
    "GPT2LMHeadModel": dict(n_embd=32, n_layer=DEPTH, n_head=4, vocab_size=64, n_positions=32, use_cache=False),
    "LlamaForCausalLM": DECODER,
    "Qwen3ForCausalLM": DECODER | dict(head_dim=8),
    "MixtralForCausalLM": DECODER | dict(num_local_experts=4),
    "BertForMaskedLM": CONFIG,
    "T5ForConditionalGeneration": dict(
        d_model=32, d_kv=8, d_ff=48, num_layers=DEPTH, num_heads=4, vocab_size=64, decoder_start_token_id=0, use_cache=False
    ),
    "Gemma2ForCausalLM": DECODER | dict(head_dim=8, sliding_window=8),
}
LEFT_OUT = {"T5ForConditionalGeneration": 2 * (DEPTH - 3), "Gemma2ForCausalLM": DEPTH - 4}  # others: DEPTH - 2


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_models_are_exported_in_short(name: str, mode: str, exported: list[int]) -> None:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    with torch.device("meta"):
        module = kind(kind.config_class(**HUGGING_FACE[name]))
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    same_graph(module, (), dict(input_ids=tokens, labels=tokens), mode)
    assert exported == [LEFT_OUT.get(name, DEPTH - 2), 0]


def test_the_numbers_of_layers_that_nobody_reads_do_not_count(exported: list[int]) -> None:
    same_graph(Stack(lambda i: Block(index=i)), ONES)
    assert exported == [DEPTH - 3, 0]  # the first reads an input without gradient, as no other does


class ScaledByNumber(Block):
    index: int

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (self.index + 1)


class WithSkip(Stack):
    """The third block's output is added behind the fifth."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for i, layer in enumerate(self.layers):
            x = layer(x)
            kept = x if i == 2 else kept
            x = x + kept if i == 4 else x
        return x.sum()


class ReadsDepth(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x) * ((i + 1) / len(self.layers))
        return x.sum()


class Shared(Stack):
    """One linear for all blocks, and the whole list run twice."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.linear = self.layers[0].linear

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(2 * x)


class ReadsWeights(Stack):
    """A penalty on the weights of a block in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.layers[3].get_parameter("linear.weight").square().sum()


class Unrolled(Stack):
    """The lines of the calls differ, and an op's source in a bare linear is the line of its call."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        x = self.layers[1](x)
        x = self.layers[2](x)
        return self.layers[3](x).sum()


class TakesNumber(Block):
    def forward(self, x: Tensor, number: int = 0) -> Tensor:
        return super().forward(x) * number


class HandsNumbers(Stack):
    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, number)
        return x.sum()


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        x += self.linear(x)
        return x


class OnAClone(Stack):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clone())


class WritesOutputs(Stack):
    """Each block's output is overwritten, and the input of the block is a view of the same memory or not."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x += 1
        return x.sum()


class Leaks(Block):
    """Keeps its activations where others read them."""

    kept: list[Tensor]

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        LEAKED.append(y)
        return x + F.relu(y)


LEAKED: list[Tensor] = []


class AddsLeaks(Stack):
    def forward(self, x: Tensor) -> Tensor:
        LEAKED.clear()
        return super().forward(x) + sum(y.square().mean() for y in LEAKED)


class Remembers(Block):
    """Leaves its output in an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


class AddsMemories(Stack):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.stack([vars(layer)["last"].mean() for layer in self.layers]).sum()


class Counts(Block):
    """Counts its calls in an object that all blocks share, and computes with the count."""

    counter: dict[str, int]

    def forward(self, x: Tensor) -> Tensor:
        self.counter["calls"] += 1
        return super().forward(x) * self.counter["calls"]


class CountsCalls(Stack):
    def __init__(self) -> None:
        counter = {"calls": 0}
        super().__init__(lambda i: Counts(counter=counter))
        self.counter = counter

    def forward(self, x: Tensor) -> Tensor:
        self.counter["calls"] = 0
        return super().forward(x)


def with_constant() -> nn.Module:
    class Constant(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor([2.0, 3.0] * 4)

    return Stack(lambda i: Constant())


def frozen_below() -> nn.Module:
    stack = Stack()
    stack.layers[:3].requires_grad_(False)
    return stack


def last_differs() -> nn.Module:
    return Stack(lambda i: Block() if i < DEPTH - 1 else nn.Sequential(nn.Linear(8, 8), nn.GELU()))


def hooked() -> nn.Module:
    stack = Stack()
    stack.layers[3].register_forward_hook(lambda module, args, output: output * 2)
    return stack


ODD: dict[str, Callable[[], nn.Module]] = {
    "a block computes with its number": lambda: Stack(lambda i: ScaledByNumber(index=i)),
    "a block looks up its number": lambda: Stack(lambda i: LooksUp(index=i, kinds=["a", "a", "a", "b", "a", "a"])),
    "another attribute": lambda: Stack(lambda i: Doubles(twice=i == 3)),
    "a skip connection": WithSkip,
    "the depth is read": ReadsDepth,
    "shared layers": Shared,
    "a weight is read outside": ReadsWeights,
    "unrolled calls of linears": lambda: Unrolled(lambda i: nn.Linear(8, 8), 4),
    "unrolled calls of blocks": lambda: Unrolled(lambda i: Block(), 4),
    "numbers as arguments": lambda: HandsNumbers(lambda i: TakesNumber()),
    "blocks write to their input": lambda: OnAClone(lambda i: InPlace()),
    "outputs are overwritten": WritesOutputs,
    "activations leak": lambda: AddsLeaks(lambda i: Leaks()),
    "activations are remembered": lambda: AddsMemories(lambda i: Remembers()),
    "calls are counted": CountsCalls,
    "constants": with_constant,
    "statistics": lambda: Stack(lambda i: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))),
    "frozen layers": frozen_below,
    "the last block differs": last_differs,
    "a hook": hooked,
}


class LooksUp(Block):
    """Its number picks what it does, as `layer_types[layer_idx]` of a configuration may."""

    index: int
    kinds: list[str]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.kinds[self.index] == "b" else 1)


class Doubles(Block):
    twice: bool

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.twice else 1)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("case", ODD)
def test_what_is_not_a_plain_repetition_gives_the_same_graph_too(case: str, mode: str) -> None:
    same_graph(ODD[case](), ONES, mode=mode)


def test_the_module_is_left_as_it_was() -> None:
    stack = Stack(lambda i: Block(index=i))
    forward = Block.forward
    capture(stack, ONES, mode="train")
    assert Block.forward is forward
    assert [layer.index for layer in stack.layers] == list(range(DEPTH))


def test_few_copies_are_not_worth_it() -> None:
    assert not Repeats(Stack(depth=2)).possible
    assert Repeats(Stack(depth=3)).possible


def test_the_comparison_of_graphs_can_fail() -> None:
    """A source line that differs is a difference: what `same_graph` rests on."""
    graph = capture(Stack(), ONES, mode="train")
    other = replace(graph, nodes=(replace(graph.nodes[0], source="elsewhere.py:1"), *graph.nodes[1:]))
    assert graph.nodes != other.nodes
