"""One's own training loop on a plan: torchrun --nproc-per-node 4 examples/own_loop.py plan.yaml [STEPS].

The plan comes from: autoplan plan configs/demo-llama.yaml --mesh 2x2 --hardware cpu-gloo -o plan.yaml
"""

import sys

import torch

import autoplan
from autoplan.models import llama
from autoplan.plan import load_plan

MICRO_BATCHES = 2
plan = load_plan(sys.argv[1])
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 10

with autoplan.join_mesh(plan) as mesh:
    torch.manual_seed(0)  # every rank builds the same model, and keeps its part of it
    module, example, _ = llama.build(**plan.model.set)
    model = autoplan.parallelize(module, example, {}, plan, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, foreach=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    inputs = autoplan.shard_inputs(plan, mesh, example)  # this rank's part of a global batch

    for step in range(steps):
        for _ in range(MICRO_BATCHES):  # of real data: another batch each
            loss = model(*inputs) / MICRO_BATCHES
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            evaluated = model(*inputs)
        model.train()
        if mesh.get_rank() == 0:
            print(f"step {step + 1}: loss {loss * MICRO_BATCHES:.5f}, norm {norm:.5f}, evaluated {evaluated:.5f}", flush=True)
