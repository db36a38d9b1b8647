"""Runs on several hosts: network namespaces joined by a cable, or two agents of torchrun on this one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runtime_cases import TINY, Seeded, mesh_of, random_plan
from torchrun import APPLY, ENVIRONMENT, ROOT, Run

from autoplan.plan import write_plan

SETTINGS = {**TINY.settings, "vocab_size": 256, "n_layers": 1}
BUILD = Seeded(TINY.factory, SETTINGS)
TWO_HOSTS = Path(__file__).with_name("two_hosts.sh")
NAMESPACE = ("unshare", "--map-root-user", "--net")
ON_HOST = """
exec {python} -m torch.distributed.run --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-id test --rdzv-endpoint 10.77.0.1:29400 \
  --rdzv-conf is_host=$((1 - HOST)) --local-addr 10.77.0.$((HOST + 1)) {arguments}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hosts")
    for shape in ((1,), (2, 2)):
        plan = random_plan(BUILD, mesh_of(*shape), 1, target="autoplan.models.llama:build", settings=SETTINGS)
        write_plan(replace(plan, hardware=replace(plan.hardware, per_host=min(2, plan.mesh.size))), folder / f"{plan.mesh}.yaml")
    return folder


def without_namespaces() -> str | None:
    """Why this machine has no namespaces to offer."""
    try:
        tried = subprocess.run([*NAMESPACE, str(TWO_HOSTS), "true"], capture_output=True, text=True, timeout=60)
    except OSError as error:
        return str(error)
    return tried.stderr.strip() or f"exit code {tried.returncode}" if tried.returncode else None


def test_two_hosts_compute_what_one_process_does(folder: Path) -> None:
    """Two namespaces with two ranks each: y joins the ranks of a host, x the hosts."""
    if reason := without_namespaces():
        pytest.skip(f"no network namespaces here: {reason}")
    ran = subprocess.run(
        [sys.executable, APPLY, "--plan", "1.yaml", "--steps", "3", "--json"], cwd=folder, env=ENVIRONMENT, capture_output=True
    )
    expected = json.loads(ran.stdout)["losses"]
    command = ON_HOST.format(python=sys.executable, arguments=f"{APPLY} --plan 2x2.yaml --steps 3 --json")
    environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "cable", "TP_SOCKET_IFNAME": "cable"}
    hosts = subprocess.run(
        [*NAMESPACE, str(TWO_HOSTS), "bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert hosts.returncode == 0, hosts.stderr
    assert json.loads(hosts.stdout)["losses"] == pytest.approx(expected, rel=1e-4)
    assert "note:" not in hosts.stderr  # hosts of two are what the plan is for


def agents(folder: Path, *arguments: str) -> tuple[Run, Run]:
    """Two agents of torchrun on this machine, as if each were a host with two ranks."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    common = ["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint", endpoint]
    local = ["--local-addr", "127.0.0.1", *arguments]
    return (
        Run([*common, "--rdzv-conf", "is_host=1", *local], folder, name="host0"),
        Run([*common, "--rdzv-conf", "is_host=0", *local], folder, name="host1"),
    )


def test_a_host_that_goes_is_said_once_on_the_other(folder: Path) -> None:
    both = agents(folder, APPLY, "--plan", "2x2.yaml", "--steps", "1000000")
    deadline = time.monotonic() + 240
    while not (first := next((run for run in both if "step 3: loss" in run.said), None)):  # the agents settle who has rank 0
        assert time.monotonic() < deadline, [run.said for run in both]
        time.sleep(0.1)
    second = both[1 - both.index(first)]
    gone = [second.pid_of(2), second.pid_of(3)]
    for pid in (second.process.pid, *gone):
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    second.process.wait()
    assert first.end() != 0
    assert time.monotonic() - killed < 60
    assert len(re.findall("error: rank [23] of 4 on", first.said)) == first.said.count("error:") == 1, first.said


def test_a_last_axis_across_hosts_is_said_once(folder: Path) -> None:
    plan = random_plan(BUILD, mesh_of(1, 4), 1, target="autoplan.models.llama:build", settings=SETTINGS)
    write_plan(plan, folder / "1x4.yaml")
    both = agents(folder, APPLY, "--plan", "1x4.yaml")
    assert all(run.end() != 0 for run in both)
    said = "".join(run.said for run in both)
    assert said.count("error:") == 1 and "axis y spans 2 hosts instead of 1" in said, said


def test_the_example_of_a_loop_trains_alike_on_two_ranks_and_alone(folder: Path) -> None:
    for shape in ((1,), (2,)):
        write_plan(random_plan(BUILD, mesh_of(*shape), 1, settings=SETTINGS), folder / f"loop{shape[0]}.yaml")
    example = str(ROOT / "examples" / "own_loop.py")
    alone = subprocess.run([sys.executable, example, "loop1.yaml", "4"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    run = Run(["--standalone", "--nproc-per-node", "2", example, "loop2.yaml", "4"], folder, name="loop")
    assert run.end() == 0, run.said
    expected, found = (
        [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines_of(text)] for text in (alone.stdout, run.said)
    )
    assert len(expected) == 4 and expected[-1][0] < expected[0][0]
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=2e-5)  # five digits are printed


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ")]
