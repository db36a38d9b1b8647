"""Writes the plans that `side_by_side.py` runs on two and on four GPUs, where there is no planner.

    python benchmarks/runtime/make_plans.py --ranks 2 [--size 1b ...]

A plan is called SIZE-LAYOUT.yaml, in `plans-two/` or `plans-four/`. The layout `own` is what the planner chooses, `free` too where all
layers recompute in the others: how many is left to it; `compiled` is `free` for compiled steps. The others are what one writes by hand, given
as pins, planned for compiled steps (but in `plans-two/`, where they ran as first planned): `data` splits the batch
and stores every parameter split (FSDP), `tensor` is Megatron's layout with sequence parallelism, `data-tensor` the first on one axis
and the second on the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {2: "plans-two", 4: "plans-four"}

Pins = list[dict[str, object]]

SIZES: dict[str, dict[str, int]] = {  # settings of autoplan.models.llama:build
    "1b": {"dim": 2048, "n_layers": 16, "n_heads": 16, "n_kv_heads": 8, "ffn_dim": 8192, "batch": 8, "seq": 4096},
    "8b_l8": {"n_layers": 8, "batch": 4, "seq": 8192},
    "8b": {"n_layers": 32, "batch": 4, "seq": 8192},
    "8b_b6": {"n_layers": 32, "batch": 6, "seq": 8192},
    "tiny": {"dim": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 192, "vocab_size": 256, "batch": 4, "seq": 32},
}  # tiny is for trying this out on a CPU
RECOMPUTED: dict[str, Pins] = {"8b": [{"recompute": "layers.*", "blocks": 32}]}  # as its hand-written baseline does

SMALL_GIB: dict[int, dict[str, float]] = {  # FSDP2 on four with head and loss compiled takes 15.3, 17.9 and, all layers recomputed, 25
    2: {},
    4: {"1b": 15.5, "8b_l8": 18.0, "8b": 25.0},
}

COLUMNS = ("attn.wq", "attn.wk", "attn.wv", "mlp.w1", "mlp.w3")
ROWS = ("attn.wo", "mlp.w2")


def data() -> Pins:
    """Fully sharded data parallelism on the only axis."""
    inputs: Pins = [{"inputs": name, "place": ["S(0)"]} for name in ("tokens", "labels")]
    return [*inputs, {"params": "all", "store": ["S(0)"], "use": ["R"]}]


def tensor(before: Sequence[str] = (), place: Sequence[str] = ()) -> Pins:
    """Megatron's layout on the last axis; on the axes before, weights are used whole and inputs are placed as `place` says."""
    uses = {**dict.fromkeys(COLUMNS, "S(0)"), **dict.fromkeys(ROWS, "S(1)")}
    weights: Pins = [{"params": f"layers.*.{name}.weight", "use": [*before, cut]} for name, cut in uses.items()]
    return [{"inputs": "tokens", "place": [*place, "R"]}, *weights]


def data_tensor() -> Pins:
    """Megatron's layout on the second axis, the batch and every stored weight split over the first too."""
    stores = {**dict.fromkeys(COLUMNS, ["S(1)", "S(0)"]), **dict.fromkeys(ROWS, ["S(0)", "S(1)"])}
    return tensor(["R"], ["S(0)"]) + [{"params": f"layers.*.{name}.weight", "store": list(store)} for name, store in stores.items()]


LAYOUTS: dict[int, dict[str, tuple[str, Pins]]] = {
    2: {"own": ("2", []), "data": ("2", data()), "tensor": ("2", tensor())},
    4: {
        "own-4": ("4", []),
        "data-4": ("4", data()),
        "own-2x2": ("2x2", []),
        "data-tensor-2x2": ("2x2", data_tensor()),
        "own-1x4": ("1x4", []),
        "tensor-1x4": ("1x4", tensor(["R"], ["R"])),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, choices=sorted(LAYOUTS), required=True)
    parser.add_argument("--size", nargs="+", choices=sorted(SIZES), default=["1b", "8b_l8", "8b"])
    options = parser.parse_args()
    folder = Path(__file__).parent / FOLDERS[options.ranks]
    folder.mkdir(exist_ok=True)
    for size in options.size:
        for layout, (mesh, pins) in LAYOUTS[options.ranks].items():
            make_plan(size, mesh, pins + RECOMPUTED.get(size, []), folder / f"{size}-{layout}.yaml", *(["--compile"] if pins else []))
            if size in RECOMPUTED and not pins:
                make_plan(size, mesh, [], folder / f"{size}-{layout.replace('own', 'free')}.yaml")
            if not pins:
                make_plan(size, mesh, [], folder / f"{size}-{layout.replace('own', 'compiled')}.yaml", "--compile")
                make_small(options.ranks, size, mesh, folder / f"{size}-{layout.replace('own', 'small')}.yaml")


def make_small(ranks: int, size: str, mesh: str, out: Path) -> None:
    """The plan of compiled steps in little memory, of sizes for which it is known what that is."""
    if size in SMALL_GIB[ranks]:
        make_plan(size, mesh, [], out, "--compile", "--memory-gib", str(SMALL_GIB[ranks][size]))


def make_plan(size: str, mesh: str, pins: Pins, out: Path, *flags: str) -> None:
    """Plans with the command line, in a process of its own."""
    settings = [f"{key}={value}" for key, value in SIZES[size].items()]
    command = [sys.executable, "-m", "autoplan", "plan", "autoplan.models.llama:build", "--mesh", mesh, "--hardware", "h200-sxm"]
    command += ["--precision", "bf16", "--optimizer", "adamw", "--set", *settings, "-o", str(out), *flags]
    if pins:
        file = out.with_suffix(".pins")
        file.write_text(yaml.safe_dump(pins))
        command += ["--pins", str(file)]
    print(out.name, flush=True)
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    out.with_suffix(".pins").unlink(missing_ok=True)
    if done.returncode:
        raise SystemExit(f"{out.name}: {done.stderr}")


if __name__ == "__main__":
    main()
