"""Weights read from files of whole tensors, and written to one: by shards in processes, and what is said where they do not fit."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import checkpoint_jobs
import pytest
import torch
from checkpoint_jobs import plan_with_stored
from runtime_cases import GPT2, Seeded, mesh_of, placements, random_plan
from safetensors.torch import load_file, save_file
from torch import nn

from autoplan import export_weights, load_weights
from autoplan.errors import AutoplanError, PlanError, TargetError, UsageError
from autoplan.runtime.storage.published import joined, stacked
from autoplan.runtime.storage.tensor_files import SafetensorsWriter, Spec, Stored, open_tensors, tensor_files
from autoplan.runtime.verify.pool import WorkerPool

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face model as it is published: in one file, and in several with an index."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(5)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "many", max_shard_size="20KB")
    assert len(list((folder / "many").glob("*.safetensors"))) > 2
    return folder


def test_a_hugging_face_model_is_read_by_slices_and_gives_its_loss(pool: WorkerPool, llama: Path) -> None:
    import transformers

    build = Seeded(checkpoint_jobs.hugging_face, {"config": str(llama / "one" / "config.json")})
    model = transformers.LlamaForCausalLM.from_pretrained(llama / "one")
    expected = model(**build().kwargs).loss.item()
    whole_bytes = sum(parameter.nbytes for parameter in model.parameters())
    plan = random_plan(build, mesh_of(2, 2), 4)
    for found in pool.run(checkpoint_jobs.read_and_run, build, plan, [str(llama / "one"), str(llama / "many")]):
        one, many = found
        assert one.loss == many.loss == pytest.approx(expected, rel=1e-5)  # fp32 sums over shards, as in `verify`
        assert one.read_bytes == one.asked_bytes == one.held_bytes == many.asked_bytes
        assert one.held_bytes < 0.8 * whole_bytes
    assert len(plan.params) > 3


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_exported_is_read_again_under_another_plan(pool: WorkerPool, tmp_path: Path, suffix: str) -> None:
    """Tied weights, grouped shards, and buffers that no file holds."""
    file = tmp_path / "new" / f"weights{suffix}"
    plan = plan_with_stored(GPT2, mesh_of(2, 2), 5, {"layers.0.attn.qkv.weight": placements("S(1,3) S(0)")})
    pool.run(checkpoint_jobs.export, GPT2, plan, str(file))
    expected = dict(GPT2().module.named_parameters())
    written = load_file(file) if suffix == ".safetensors" else torch.load(file)
    assert all(torch.equal(written[name], parameter) for name, parameter in expected.items())
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    other = plan_with_stored(GPT2, mesh_of(4, 1), 7, {"layers.1.attn.qkv.weight": placements("S(1,3) R")})
    for found in pool.run(checkpoint_jobs.read_whole, GPT2, other, str(file)):
        assert found.keys() == {f"model.{name}" for name in expected}
        assert all(torch.equal(found[f"model.{name}"], parameter) for name, parameter in expected.items())


class Net(nn.Module):
    """Layers, batch statistics, a buffer that is not saved and a tied weight."""

    def __init__(self, width: int = 8, tie: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(width, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, width, bias=False)
        self.mask: torch.Tensor
        self.register_buffer("mask", torch.ones(2), persistent=False)
        if tie:
            self.head.weight = self.embed.weight


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64}),
    "mixtral": ("MixtralForCausalLM", {**SIZES, "num_key_value_heads": 2, "vocab_size": 64, "num_local_experts": 4}),
    "vit": ("ViTForImageClassification", {**SIZES, "image_size": 32, "patch_size": 8, "num_labels": 4}),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_models_whose_published_tensors_are_not_those_of_their_class_are_read_as_transformers_reads_them(
    pool: WorkerPool, tmp_path: Path, kind: str
) -> None:
    """GPT-2 is told to pass over `attn.bias`, ViT has other names, Mixtral one tensor for each expert; each rank reads its slices."""
    transformers = pytest.importorskip("transformers")
    name, entries = PUBLISHED[kind]
    torch.manual_seed(5)
    config = transformers.CONFIG_MAPPING[kind](**entries, architectures=[name])
    model = getattr(transformers, name)(config)
    model.save_pretrained(tmp_path)
    build = Seeded(checkpoint_jobs.hugging_face, {"config": str(tmp_path / "config.json")})
    with torch.no_grad():
        expected = model.eval()(**build().kwargs).loss.item()
    plan = random_plan(build, mesh_of(2, 2), 4)
    for (found,) in pool.run(checkpoint_jobs.read_and_run, build, plan, [str(tmp_path)], False):
        assert found.loss == pytest.approx(expected, rel=1e-5)
        assert found.read_bytes == found.asked_bytes == found.held_bytes
    export_weights(model, tmp_path / "again" / "model.safetensors")
    config.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_parts_of_stacked_and_joined_tensors_are_those_of_the_whole() -> None:
    parts = [torch.arange(12).view(3, 4) + 100 * i for i in range(3)]
    files = [Stored(tuple(part.shape), part.__getitem__) for part in parts]
    for made, whole in (
        (stacked(files, 0), torch.stack(parts)),
        (stacked(files, 1), torch.stack(parts, 1)),
        (joined(files, 0), torch.cat(parts)),
        (joined([stacked(files, 0), stacked(files[:1] * 3, 0)], 1), torch.cat([torch.stack(parts), torch.stack(parts[:1] * 3)], 1)),
    ):
        assert made.shape == tuple(whole.shape)
        for dim, size in enumerate(made.shape):
            for cut in (slice(0, size), slice(1, size), slice(size - 1, size), slice(1, 1)):
                index = tuple(cut if other == dim else slice(0, n) for other, n in enumerate(made.shape))
                assert torch.equal(made.read(index), whole[index])


def test_a_parameter_is_read_though_its_class_has_files_hold_a_like_name(tmp_path: Path) -> None:
    class Named(nn.Module):
        _keys_to_ignore_on_load_unexpected = ("attn.bias",)

        def __init__(self) -> None:
            super().__init__()
            self.c_attn = nn.Linear(2, 2)

    named, other = Named(), Named()
    save_file(named.state_dict() | {"attn.bias": torch.zeros(2)}, tmp_path / "net.safetensors")
    load_weights(other, tmp_path / "net.safetensors")
    assert torch.equal(other.c_attn.bias, named.c_attn.bias)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_rank_0_cannot_write_is_said_on_every_rank(pool: WorkerPool, tmp_path: Path, suffix: str) -> None:
    """None waits for what the others gather, whether the folder is not to be made or the disk is full."""
    plan = random_plan(GPT2, mesh_of(2, 2), 0)
    said = pool.run(checkpoint_jobs.export_to_a_full_disk, GPT2, plan, str(tmp_path / f"weights{suffix}"))
    assert len(set(said)) == 1 and "cannot be written: " in said[0] and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(AutoplanError, match=r"file/out.* cannot be written: "):
        pool.run(checkpoint_jobs.export, GPT2, plan, str(tmp_path / "file" / f"out{suffix}"))
    pool.run(checkpoint_jobs.export, GPT2, plan, str(tmp_path / f"weights{suffix}"))
    assert (tmp_path / f"weights{suffix}").stat().st_size > 512


def test_a_torch_export_is_a_state_dict_and_safetensors_hold_each_tied_weight_once(tmp_path: Path) -> None:
    net = Net()
    export_weights(net, tmp_path / "net.pt")
    Net().load_state_dict(torch.load(tmp_path / "net.pt"), strict=True)
    export_weights(net, tmp_path / "net.safetensors", dtype=torch.bfloat16)
    found = load_file(tmp_path / "net.safetensors")
    assert found.keys() == net.state_dict().keys() - {"head.weight"}
    assert found["norm.num_batches_tracked"].dtype == torch.int64 and found["norm.weight"].dtype == torch.bfloat16
    other = Net()
    assert load_weights(other, tmp_path / "net.safetensors") == sum(tensor.nbytes for tensor in found.values())
    assert torch.equal(other.head.weight, net.embed.weight.bfloat16().float())


def test_a_tied_weight_is_taken_by_any_of_its_names(tmp_path: Path) -> None:
    net = Net()
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items() if name != "embed.weight"}
    save_file(tensors, tmp_path / "net.safetensors")
    other = Net()
    load_weights(other, tmp_path / "net.safetensors")
    assert torch.equal(other.embed.weight, net.embed.weight)


@pytest.mark.parametrize("outer", [True, False], ids=["module", "file"])
def test_a_prefix_that_all_names_of_one_side_have_is_seen(tmp_path: Path, outer: bool) -> None:
    net, inner = Net(), Net()
    wrapped = nn.ModuleDict({"model": inner})
    ours, theirs = (wrapped, net) if outer else (net, wrapped)
    made_itself = "mask" if outer else "model.mask"
    tensors = {name: tensor.clone() for name, tensor in theirs.state_dict().items() if not name.endswith("head.weight")}
    save_file(tensors | {made_itself: torch.zeros(2)}, tmp_path / "net.safetensors")
    load_weights(ours, tmp_path / "net.safetensors")
    assert torch.equal(inner.norm.weight, net.norm.weight) and torch.equal(inner.head.weight, net.head.weight)
    assert inner.mask.eq(1).all() and net.mask.eq(1).all()


def test_names_of_ones_own_are_renamed_and_old_buffers_passed_over(tmp_path: Path) -> None:
    net = Net()
    tensors = {f"x/{name.replace('.', '/')}": tensor.clone() for name, tensor in net.state_dict().items()}
    save_file(tensors | {"optimizer": torch.zeros(1), "x/mask": torch.zeros(2)}, tmp_path / "net.safetensors")
    other = Net()
    load_weights(
        other,
        tmp_path / "net.safetensors",
        rename=lambda name: name.removeprefix("x/").replace("/", ".") if name.startswith("x/") else None,
    )
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in other.state_dict().items()) and other.mask.eq(1).all()


def test_all_that_does_not_fit_is_one_message_and_nothing_is_read(tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in Net(width=6, tie=False).state_dict().items() if "layers" not in name}
    save_file(tensors | {f"layers.{i}.w": torch.zeros(1) for i in range(3)}, tmp_path / "net.safetensors")
    net = Net(tie=False)
    before = net.embed.weight.clone()
    with pytest.raises(PlanError) as error:
        load_weights(net, tmp_path / "net.safetensors")
    lines = str(error.value).splitlines()
    assert lines[1:4] == [
        "missing there: layers.*.weight",
        "not in this model: layers.*.w",
        "other shapes: embed.weight is [6, 4] there, [8, 4] here, head.weight is [6, 4] there, [8, 4] here",
    ]
    assert torch.equal(net.embed.weight, before)


def test_a_folder_stands_for_the_files_that_transformers_takes(tmp_path: Path) -> None:
    for name in ("model.safetensors", "consolidated.safetensors", "a.safetensors"):
        save_file({"w": torch.zeros(1)}, tmp_path / name)
    assert tensor_files(tmp_path) == [tmp_path / "model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TargetError, match="it has a.safetensors, consolidated.safetensors"):
        tensor_files(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    assert tensor_files(tmp_path) == tensor_files(index) == [tmp_path / "a.safetensors"]
    index.write_text(json.dumps({"weight_map": {"w": "b.safetensors", "v": "c.safetensors"}}))
    with pytest.raises(TargetError, match="not there: b.safetensors, c.safetensors"):
        tensor_files(tmp_path)


def test_files_that_cannot_be_read_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    (tmp_path / "bad.pt").write_bytes(b"no")
    torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "nested.pt")
    for name, said in (
        ("bad.safetensors", "cannot be read"),
        ("bad.pt", "cannot be read"),
        ("nested.pt", "no state dict"),
        ("none.safetensors", "no such file"),
        ("model.gguf", "no file of weights"),
    ):
        with pytest.raises(TargetError, match=said):
            load_weights(Net(), tmp_path / name)
    with pytest.raises(UsageError, match="no kind of file to export to"):
        export_weights(Net(), tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="bad.pt/net.safetensors cannot be written"):
        export_weights(Net(), tmp_path / "bad.pt" / "net.safetensors")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "safetensors":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TargetError, match=r"pip install 'autoplan\[hf\]'"):
        load_weights(Net(), tmp_path / "bad.safetensors")


def test_safetensors_of_all_dtypes_and_of_no_elements_are_read_by_their_own_package(tmp_path: Path) -> None:
    dtypes = (torch.float64, torch.int64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool)
    tensors = [torch.arange(3).to(dtype) for dtype in dtypes] + [torch.zeros(0, 4, dtype=torch.uint8)]
    file = tmp_path / "all.safetensors"
    with SafetensorsWriter(file, [Spec(f"t{i}", tensor.shape, tensor.dtype) for i, tensor in enumerate(tensors)]) as writer:
        for tensor in tensors:
            writer.write(tensor)
    found = load_file(file)
    for i, tensor in enumerate(tensors):
        assert found[f"t{i}"].dtype == tensor.dtype and torch.equal(found[f"t{i}"], tensor)
    with open_tensors(file) as stored:
        assert stored["t1"].read((slice(1, 3),)).tolist() == [1, 2]


def test_a_state_dict_in_memory_is_read_like_a_file() -> None:
    torch.manual_seed(1)
    given, ours = Net(), Net()
    load_weights(ours, given.state_dict())
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in ours.state_dict().items())
    with pytest.raises(PlanError, match=r"not in this model: layers\.\*\.bias\n  the state dict"):
        load_weights(Net(), {**given.state_dict(), **{f"layers.{i}.bias": torch.zeros(4) for i in range(3)}})
