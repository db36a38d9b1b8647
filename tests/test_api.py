"""Planning from Python."""

import subprocess
import sys

import autoplan
from autoplan.models import llama
from autoplan.plan import Options


def test_make_plan_plans_the_module_in_hand_and_leaves_it_alone() -> None:
    module, args, kwargs = llama.build(dim=32, n_layers=2, n_heads=2, n_kv_heads=2, ffn_dim=64, vocab_size=64, batch=4, seq=8)
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    plan = autoplan.make_plan(module, args, kwargs, mesh="2x2", hardware="cpu-gloo", options=Options(precision="fp32"))
    assert plan.solver.status == "optimal" and plan.mesh.size == 4
    assert plan.model.parameters == sum(parameter.numel() for parameter in module.parameters())
    assert all(before[name].equal(parameter) for name, parameter in module.named_parameters())


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, autoplan; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
