"""One plan that has something in every section, and the text it is dumped as."""

from pathlib import Path

import pytest

from autoplan.placement import Mesh, P, R, S
from autoplan.plan import (
    BufferLine,
    ByHandLine,
    Collective,
    CommunicationMs,
    FallbackLine,
    GatherLine,
    HardwareInfo,
    InputLine,
    MemoryGib,
    ModelInfo,
    OpLine,
    Options,
    OutputLine,
    ParamLine,
    Plan,
    Predicted,
    RecomputeLine,
    ReshardEntry,
    SolverInfo,
)

GATHER_X, GATHER_Y, GATHER_XY = (Collective("all-gather", axes) for axes in (("x",), ("y",), ("x", "y")))
SCATTER_X, SCATTER_Y, SCATTER_XY = (Collective("reduce-scatter", axes) for axes in (("x",), ("y",), ("x", "y")))
REDUCE_Y = Collective("all-reduce", ("y",))


@pytest.fixture
def plan() -> Plan:
    """A Llama of 32 layers on 2x4, its figures chosen for the notation they need."""
    return Plan(
        model=ModelInfo("models/llama.py:build", 8_030_261_248, "sha256:12ab", "sha256:34cd", {"n_layers": 32, "eps": 1e-5, "name": "on"}),
        mesh=Mesh(("x", "y"), (2, 4)),
        hardware=HardwareInfo("h200-sxm", "sha256:56ef"),
        options=Options(memory_gib=120.0),
        pins=({"param": "layers.*.attn.wq.weight", "use": ["R", "S(0)"]},),
        inputs={"tokens": InputLine((8, 8192), "int64", (S(0), R))},
        outputs={"loss": OutputLine((R, R))},
        params={
            "norm.weight": ParamLine((4096,), (S(0), R), (R, R)),
            "layers.{2-31}.attn.wqkv.weight": ParamLine((6144, 4096), (S(1), S(0, 3)), (R, S(0, 3)), 30),
            "layers.0.attn.wqkv.weight": ParamLine((6144, 4096), (S(0), R), (R, R)),
            "layers.1.attn.wqkv.weight": ParamLine((6144, 4096), (S(1), R), (R, R)),
            "layers.*.attn.wo.weight": ParamLine((4096, 4096), (S(0), S(1)), (R, S(1)), 32),
            "embed.weight": ParamLine((128256, 4096), (S(0), R), {"head/linear": (R, S(0)), "embed/embedding": (R, R)}),
        },
        buffers={"rope.cos": BufferLine((8192, 128), (R, R))},
        ops={"head/cross_entropy_loss": OpLine("S(0) S(0) -> P on x; S(1) R -> R on y", (REDUCE_Y,) * 3)},
        reshard={
            "layers.*.attn_norm/rms_norm": (
                ReshardEntry((S(0), S(1)), (S(0), R), (GATHER_Y,), (SCATTER_Y,), 32, ("layers.*.attn.wqkv/linear",)),
                ReshardEntry((S(0), S(1)), (R, R), (GATHER_XY,), (SCATTER_XY,), 32, ("layers.*/add#1", "layers.*/split[1]")),
            ),
            "layers.*.attn.wo/linear": (ReshardEntry((S(0), P), (S(0), S(1)), (SCATTER_Y,), (GATHER_Y,), 32),),
            "layers.*.mlp.w2/linear": (ReshardEntry((S(0), R), (S(0), R), (), (REDUCE_Y,), 32),),
        },
        gather={
            "layers.*": GatherLine("block", True, 1, (GATHER_X,), (GATHER_X, SCATTER_X), 32),
            "embed.weight": GatherLine("parameter", False, 0, (GATHER_X,), (SCATTER_X,)),
        },
        recompute={"layers.*": RecomputeLine(8, 32, "full")},
        fallbacks=(FallbackLine("layers.*/cumsum", "aten.cumsum", 32, 1.5),),
        predicted=Predicted(412.4, 350.0, 20.0, 6.04, 0.0, CommunicationMs(36.0, 84.4), MemoryGib(49.04, 2.0, 2.0, 8.0, 31.04, 2.0, 4.0)),
        by_hand={
            "ddp": ByHandLine(none="needs 151.2 GiB with everything recomputed"),
            "fsdp": ByHandLine(430.4, 55.04),
            "fsdp+tp": ByHandLine(520.0, 49.04),
        },
        solver=SolverInfo("optimal", 0.0, True, 0.000123),
    )


@pytest.fixture
def golden_path() -> Path:
    """The file that holds `plan` as it is dumped."""
    return Path(__file__).parent / "golden.yaml"


@pytest.fixture
def text(golden_path: Path) -> str:
    """The text `plan` is dumped as."""
    return golden_path.read_text(encoding="utf-8")
