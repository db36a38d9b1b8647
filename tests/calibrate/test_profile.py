"""The file: it reads back as what was fitted, and every number has its source beside it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from calibrate_cases import GPU, evidence, timed, works
from hypothesis import given
from hypothesis import strategies as st

from autoplan.calibrate.evidence import Measured
from autoplan.calibrate.fit import Fitted, fit
from autoplan.calibrate.profile import number, profile_text
from autoplan.calibrate.residuals import residuals, summaries
from autoplan.cost.hardware import Hardware, load_hardware, profile_names

H200 = load_hardware("h200-sxm")


def read(text: str, folder: Path) -> Hardware:
    path = folder / "ours.yaml"
    path.write_text(text)
    return load_hardware(path)


@pytest.mark.parametrize("name", [name for name in profile_names() if name != "test-free-links"])
def test_a_profile_reads_back_as_it_was(name: str, tmp_path: Path) -> None:
    """To three digits, tables to four. What has been written once has no more, and reads back the same."""
    before = load_hardware(name)
    once = read(profile_text(Fitted(before), evidence(name, Measured())), tmp_path)
    assert once.compute.matmul == before.compute.matmul and once.compute.flops_per_s == before.compute.flops_per_s
    assert (once.network, once.host, once.hides, once.memory_bytes) == (before.network, before.host, before.hides, before.memory_bytes)
    assert set(once.node_link.measured) == set(before.node_link.measured)
    assert read(profile_text(Fitted(once), evidence(name, Measured())), tmp_path) == once


@given(st.floats(1e-15, 1e15))
def test_numbers_are_floats_to_yaml_and_keep_three_digits(value: float) -> None:
    text = number(value)
    assert re.fullmatch(r"\d+\.\d+(e[-+]\d+)?", text), "YAML 1.1 wants a dot, and a sign in the exponent"
    assert float(text) == pytest.approx(value, rel=0.00501)


def test_every_number_has_its_source(tmp_path: Path) -> None:
    """Beside it, or beside the section that it is in; what has none of its own is as in the base."""
    measured = timed(works(), H200, noise=0.02)
    measured.left_out["dropout: dropout of 7 bfloat16"] = "NotImplementedError: no such kernel"
    known = evidence("a100-80g-sxm", measured)
    text = profile_text(fit(known), known)
    lines = text.splitlines()
    assert "dropout of 7 bfloat16: NotImplementedError: no such kernel" in text
    for line in lines[lines.index("compute:") :]:
        key = line.split(":")[0].strip()
        if key in ("bytes_per_s", "launch_s", "matmul", "efficiency", "node_link", "op_s", "hides", "mask_s", "attention_forward"):
            assert "#" in line or line.startswith("    "), line
    assert re.search(rf"hides: {load_hardware('a100-80g-sxm').hides:g} +# as a100-80g-sxm", text)
    assert re.search(r"matmul: +# measured: products, .* timings of .* runs; predictions .* % off, at most .* %", text)
    assert re.search(r"float32: \S+ +# a100-80g-sxm's, scaled as bfloat16", text)
    assert read(text, tmp_path).compute.matmul.efficiency > 0.5


def test_a_single_process_says_that_links_are_the_bases() -> None:
    alone = evidence("h200-sxm", timed(works(1, 1), H200), replace(GPU, ranks=1, per_host=1), same_device=True)
    text = profile_text(fit(alone), alone)
    assert "One process alone: nothing was measured of links and network." in text
    assert re.search(r"pair: 3.3e-5 +# as h200-sxm", text)


def test_residuals_show_links_by_their_tables_and_by_the_formula() -> None:
    measured = timed(works(2, 2, quick=False), H200)
    found = residuals(measured.timings, H200)
    by_family = {each.family: each for each in summaries(found)}
    assert by_family["products"].typical == pytest.approx(0.0, abs=1e-9)
    assert {"links, in tables", "links, between", "links, by formula"} <= set(by_family)
    assert by_family["links, in tables"].typical == pytest.approx(0.0, abs=1e-9)
    assert by_family["links, by formula"].worst.error != 0.0
    assert set(found[0].to_json()) == {"family", "what", "measured_s", "predicted_s", "error", "runs"}
