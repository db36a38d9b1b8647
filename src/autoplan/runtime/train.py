"""The torchrun entry: build the plan's model, run it as planned, report loss, time and memory beside the prediction."""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from autoplan.errors import UsageError
from autoplan.graph import input_leaves
from autoplan.load import Built, build_on, build_skeleton, load_rules, load_target
from autoplan.plan.load import load_plan
from autoplan.plan.plain import predicted_to_json
from autoplan.plan.schema import Plan
from autoplan.runtime.data import Batch, open_text
from autoplan.runtime.parallelize import local_forward, parallelize
from autoplan.runtime.ranks.agreement import check_world
from autoplan.runtime.ranks.faults import check_loss, check_memory, memory_explained, memory_of_ranks
from autoplan.runtime.ranks.launch import Launch, say_alone, this_rank
from autoplan.runtime.shards import local_part
from autoplan.runtime.storage.autosave import Autosave
from autoplan.runtime.storage.checkpoint import last
from autoplan.runtime.storage.weights import check_export, check_writable, export_weights, initialize, load_weights
from autoplan.settings import parse_settings

LARGE_MODEL = 2_000_000_000  # parameters: above, no rank builds the whole model
WARM_UP_STEPS = 2
SEEDS = 2**40  # times what spreads the seeds of steps it is still a seed of torch's
GIB = 2**30


@dataclass(frozen=True)
class Outcome:
    """What a run measured."""

    step_ms: float | None
    peak_gib: float | None
    losses: tuple[float, ...]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process; an error is said once whatever ranks have it, a user's without traceback.

    Ends without the interpreter's finalization: threads of gloo may still hold tensors, and freeing these while the
    interpreter goes away aborts the process (pytorch/pytorch#179291).
    """
    code = _main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _main(argv: Sequence[str] | None) -> int:
    options = _parser().parse_args(argv)
    try:
        with Launch() as launch:
            run(options, launch)
    except Exception as error:
        return say_alone(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apply.py", description="Run a model as its plan says. Start it with torchrun, one process for each rank of the plan's mesh."
    )
    parser.add_argument("--plan", required=True, help="the plan's YAML file")
    parser.add_argument("--target", help="the model, if not the one the plan names")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the target, over the plan's own")
    parser.add_argument("--rules", metavar="FILE|MODULE", help="registers rules for ops of your own, if not where the plan says")
    parser.add_argument("--steps", type=_count, default=10, help="how many steps to run (default 10)")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="run the program's pieces through torch.compile, or not (default: as the plan says)",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="compile all blocks as one function: less for the host of a small model to do, longer to compile",
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="compile, and replay what is compiled as CUDA graphs: for a small model, whose host then has next to nothing to do",
    )
    parser.add_argument("--data", metavar="FILE", help="a text to train on, one byte a token (default: the target's example, every step)")
    parser.add_argument("--seed", type=_seed, default=0, help="of weights and data (default 0); a resumed run keeps its own")
    parser.add_argument("--lr", type=_rate, default=3e-4, help="the learning rate (default 3e-4); a resumed run keeps its own")
    parser.add_argument("--checkpoint", metavar="DIR", help="resume from here if there is a checkpoint, and write one at the end")
    parser.add_argument("--checkpoint-every", type=_positive, metavar="K", help="with --checkpoint: write one every K steps as well")
    parser.add_argument(
        "--weights", metavar="PATH", help="begin with these: safetensors (a file, or a folder with its index) or a .pt file"
    )
    parser.add_argument("--export", metavar="FILE", help="at the end write all weights to one .safetensors or .pt file")
    parser.add_argument("--allow-nonfinite", action="store_true", help="go on when the loss is NaN or infinite")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _count(text: str) -> int:
    return _at_least(text, 0)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _at_least(text: str, least: int) -> int:
    number = _whole(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is less than {least}")
    return number


def _seed(text: str) -> int:
    """What torch's generators take, after what data and steps add to it."""
    number = _whole(text)
    if abs(number) >= SEEDS:
        raise argparse.ArgumentTypeError(f"{text} is not between {-SEEDS} and {SEEDS}")
    return number


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no learning rate: a number of at least 0")
    return number


def _check(options: argparse.Namespace) -> None:
    """What would else be found out at the end."""
    if options.export:
        check_export(options.export)
        if this_rank() == 0:
            check_writable(options.export)
    for name in ("whole", "cuda_graphs"):
        if getattr(options, name) and options.compile is False:
            raise UsageError(f"--{name.replace('_', '-')} compiles and --no-compile does not", next_step="leave one out")
    if options.checkpoint_every and not options.checkpoint:
        raise UsageError("--checkpoint-every says how often, and --checkpoint where", next_step="give --checkpoint DIR")


def run(options: argparse.Namespace, launch: Launch) -> None:
    """One run from plan to report."""
    plan = load_plan(options.plan)
    check_world(plan.mesh, options.plan)
    _check(options)
    settings = parse_settings(options.set)
    beside = Path(options.plan).resolve().parent
    rules = options.rules or plan.model.rules
    target = load_target(
        options.target or plan.model.target,
        {**plan.model.set, **settings},
        batch=plan.model.batch,
        seq=plan.model.seq,
        mode=plan.options.mode,
        base="." if options.target else beside,
        rules=load_rules(rules, "." if options.rules else beside) if rules else None,
    )
    device_mesh = launch.join(plan.mesh)
    if note := check_memory(plan, memory_of_ranks()):
        _say(note)
    drawn_whole = plan.model.parameters <= LARGE_MODEL and not options.weights
    built = build_on(target, "cpu", options.seed) if drawn_whole else build_skeleton(target, options.seed)
    with memory_explained(plan, "placing the parameters"):
        module = parallelize(built.module, built.args, built.kwargs, plan, device_mesh)
        local_forward(module).seed = options.seed
        if not drawn_whole:
            _fill(module, options)
    module.train(plan.options.mode == "train")
    compiled = options.whole or options.cuda_graphs or (plan.options.compile if options.compile is None else options.compile)
    if compiled:
        local_forward(module).compile(whole=options.whole, cuda_graphs=options.cuda_graphs)
        functions = local_forward(module).program.functions
        _say(f"compiling {sum(function.is_compiled for function in functions)} functions in the first step")
        if eager := sum(not function.is_compiled for function in functions):
            _say(
                f"note: {eager} of {len(functions)} functions stay eager: their ops draw random numbers as different shards, by one generator"
            )
    optimizer = _optimizer(module, plan, options.lr)
    autosave = Autosave(options.checkpoint, options.checkpoint_every, module, optimizer, writes=plan.options.mode == "train")
    steps = autosave.resume(options.steps)
    if steps.start:
        _say(f"resumed after step {steps.start} from {options.checkpoint}")
    outcome = _steps(module, optimizer, _batches(options, built, module), steps, autosave, plan, options.allow_nonfinite)
    if autosave.after(steps.stop):
        _say(f"wrote {options.checkpoint}")
    if options.export:
        export_weights(module, options.export)
        _say(f"wrote {options.export}")
    _report(outcome, plan, compiled, options.json)


def _fill(module: nn.Module, options: argparse.Namespace) -> None:
    """Give parameters that were built on meta their first values, unless those of a checkpoint are to come."""
    if options.checkpoint and last(options.checkpoint):
        return
    if options.weights:
        read_bytes = load_weights(module, options.weights)
        _say(f"read {options.weights}: {read_bytes / GIB:.3f} GiB on rank 0")
    else:
        initialize(module, options.seed)


def _say(text: str) -> None:
    """Prose, of rank 0 alone."""
    if this_rank() == 0:
        print(text, file=sys.stderr, flush=True)


def _optimizer(module: nn.Module, plan: Plan, lr: float) -> Optimizer | None:
    """The plan's optimizer over the parameters that train."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if plan.options.mode == "infer" or plan.options.optimizer == "none" or not trained:
        return None
    if plan.options.optimizer == "sgd":
        return torch.optim.SGD(trained, lr)
    return torch.optim.AdamW(trained, lr, fused=trained[0].is_cuda)


def _batches(options: argparse.Namespace, built: Built, module: nn.Module) -> Callable[[int], Batch]:
    """The global batch of every step, by the names of its leaves."""
    local = local_forward(module)
    example = input_leaves(local.signature, built.args, built.kwargs)
    if options.data is None:
        return lambda step: example
    return open_text(options.data, example, local.program.graph, local.seed)


def _steps(
    module: nn.Module,
    optimizer: Optimizer | None,
    batches: Callable[[int], Batch],
    steps: range,
    autosave: Autosave,
    plan: Plan,
    allow_nonfinite: bool,
) -> Outcome:
    losses: list[float] = []
    seconds: list[float] = []
    memory_before = _resident_bytes()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for step in steps:
        batch = _own_part(module, batches(step))
        _settle()
        start = time.perf_counter()
        with memory_explained(plan, f"in step {step + 1}"):
            loss = _one_step(module, optimizer, batch)
        _settle()
        seconds.append(time.perf_counter() - start)
        if loss is not None:
            losses.append(loss.item())
            _say(f"step {step + 1}: loss {losses[-1]:.4f}, {seconds[-1] * 1e3:.1f} ms")
            if not allow_nonfinite:
                check_loss(losses[-1], step + 1, plan)
        if autosave.after(step + 1):
            _say(f"wrote {autosave.folder} after step {step + 1}")
    timed = seconds[WARM_UP_STEPS:] or seconds[-1:]
    return Outcome(1e3 * median(timed) if timed else None, _peak_bytes(memory_before) / GIB, tuple(losses))


def _own_part(module: nn.Module, batch: Batch) -> tuple[Any, ...] | dict[str, Any]:
    """This rank's part of every tensor of a batch, on its device."""
    local = local_forward(module)
    program = local.program
    sources = program.assignment.sources
    placed = {program.graph.values[value].address.removeprefix("inputs/"): sources[value] for value in program.graph.inputs}
    return {
        name: local_part(leaf, placed[name], program.assignment.mesh, local.collectives.coordinate).to(local.device)
        if isinstance(leaf, Tensor)
        else leaf
        for name, leaf in batch.items()
    }


def _one_step(module: nn.Module, optimizer: Optimizer | None, batch: Any) -> Tensor | None:
    """Forward, and in training backward and the optimizer's step; the loss."""
    returned = local_forward(module).call_by_name(module, batch)
    if not local_forward(module).trains:
        return None
    loss = local_forward(module).loss_of(returned)
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    module.zero_grad(set_to_none=True)
    return loss.detach()


def _settle() -> None:
    """Wait until this device and all ranks are done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier()


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _peak_bytes(resident_before: int) -> float:
    """The largest over all ranks: CUDA's allocator peak; on the CPU what the process has grown by since the first step."""
    own = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident_bytes() - resident_before
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    peak = torch.tensor(float(own), dtype=torch.float64, device=device)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return peak.item()


def _report(outcome: Outcome, plan: Plan, compiled: bool, as_json: bool) -> None:
    """Measured beside predicted, by rank 0; predictions of the other kind of run say so."""
    if this_rank() != 0:
        return
    predicted = predicted_to_json(plan.predicted)
    kind = "" if compiled == plan.options.compile else f" for {'compiled' if plan.options.compile else 'eager'} steps"
    if outcome.step_ms is not None:
        _say(f"step {outcome.step_ms:.1f} ms, predicted {predicted['step_ms']} ms on {plan.hardware.profile}{kind}")
    what = "peak memory" if torch.cuda.is_available() else "memory grown by (of the process, on the CPU)"
    _say(f"{what} {outcome.peak_gib:.3f} GiB, predicted peak {predicted['memory_gib']['peak']} GiB{kind}")
    if as_json:
        losses = [loss if math.isfinite(loss) else None for loss in outcome.losses]  # JSON has no NaN
        print(json.dumps({"step_ms": outcome.step_ms, "peak_gib": outcome.peak_gib, "losses": losses, "predicted": predicted}), flush=True)


__all__ = ["main"]
