"""Profiles: those that ship load, and a bad one says all that is wrong, by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoplan.cost.hardware import PROFILES, load_hardware, profile_names
from autoplan.errors import HardwareError, UsageError

SHIPPED = ("a100-80g-sxm", "cpu-gloo", "h100-sxm", "h200-sxm", "test-free-links")


def test_the_shipped_profiles_are_those_of_the_repository() -> None:
    assert set(SHIPPED) <= set(profile_names())
    assert (Path(__file__).parents[2] / "configs" / "hardware").resolve() == PROFILES.resolve()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_loads(name: str) -> None:
    hardware = load_hardware(name)
    assert hardware.name == name
    assert hardware.memory_bytes > 2**30
    assert hardware.digest.startswith("sha256:")
    assert load_hardware(name) == hardware


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_of_a_profile_has_its_source_in_the_file(name: str) -> None:
    text = (PROFILES / f"{name}.yaml").read_text()
    assert text.startswith("#")
    assert "assumption" in text or "does not exist" in text


def test_the_digest_ignores_comments_but_not_numbers(tmp_path: Path) -> None:
    text = (PROFILES / "h100-sxm.yaml").read_text()
    commented, changed = tmp_path / "commented.yaml", tmp_path / "changed.yaml"
    commented.write_text("# a note\n" + text)
    changed.write_text(text.replace("gpus_per_node: 8", "gpus_per_node: 4"))
    assert load_hardware(commented).digest == load_hardware("h100-sxm").digest
    assert load_hardware(changed).digest != load_hardware("h100-sxm").digest


def test_a_profile_in_configs_hardware_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "hardware"
    folder.mkdir(parents=True)
    text = (PROFILES / "h100-sxm.yaml").read_text()
    (folder / "h100-sxm.yaml").write_text(text.replace("memory_gib: 74.0", "memory_gib: 40.0"))
    (folder / "ours.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert load_hardware("h100-sxm").memory_bytes == 40 * 2**30
    assert load_hardware("ours").name == "ours"
    assert "ours" in profile_names()


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UsageError) as error:
        load_hardware("h200")
    assert error.value.exit_code == 2
    for name in SHIPPED:
        assert name in str(error.value)
    assert "did you mean h200-sxm?" in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(HardwareError, match="nowhere/machine.yaml: no such hardware profile"):
        load_hardware("nowhere/machine.yaml")


def test_every_problem_of_a_profile_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    text = (PROFILES / "cpu-gloo.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    text = "\n".join(lines)
    text = text.replace("gpus_per_node: 64 ", "gpus_per_node: many ").replace("launch_s: 3.0e-6", "launch_s: -1")
    text = text.replace("    half_tile: 0.0\n", "").replace("network:", "netwerk:") + "\noverlap:\n  hides: 1.5\n"
    path.write_text(text)
    with pytest.raises(HardwareError) as error:
        load_hardware(path)
    message = str(error.value)
    assert f"{path}:4: gpus_per_node: 'many' is not a positive integer" in message
    assert "compute.launch_s: -1 is not a number of at least 0" in message
    assert "compute.matmul.half_tile: missing" in message
    assert "netwerk: unknown" in message
    assert "overlap.hides: is a part: at most 1" in message
    assert "network: missing" in message


def test_the_optimizer_moves_its_bytes_as_other_ops_unless_the_profile_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    text = (PROFILES / "h200-sxm.yaml").read_text()
    path.write_text("\n".join(line for line in text.splitlines() if "optimizer_bytes_per_s" not in line))
    assert load_hardware(path).compute.optimizer_bytes_per_s == load_hardware("h200-sxm").compute.bytes_per_s
    path.write_text(text.replace("optimizer_bytes_per_s: 2.27e+12", "optimizer_bytes_per_s: 0"))
    with pytest.raises(HardwareError, match="compute.optimizer_bytes_per_s: 0 is not a positive number"):
        load_hardware(path)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("{128: 0.5, 64: 0.4}", ((64, 0.4), (128, 0.5))),
        ("0.5", ((1, 0.5),)),
        ("{64: 0.4, wide: 0.5}", "attention_backward.efficiency.wide: is not a size"),
        ("{0: 0.4, 64: 0.5}", "attention_backward.efficiency.0: is not a size"),
        ("{64: fast}", "attention_backward.efficiency.64: 'fast' is not a positive number"),
        ("{}", "attention_backward.efficiency: has no sizes"),
        ("[0.4]", "attention_backward.efficiency: must be a single value"),
    ],
)
def test_efficiencies_of_attention_are_one_or_by_head_size(tmp_path: Path, table: str, expected: Any) -> None:
    path = tmp_path / "ours.yaml"
    text = (PROFILES / "h200-sxm.yaml").read_text()
    path.write_text(text.replace("{64: 0.343, 96: 0.349, 128: 0.437, 256: 0.328}", table))
    if isinstance(expected, tuple):
        assert load_hardware(path).compute.attention_backward.efficiencies == expected
        return
    with pytest.raises(HardwareError) as error:
        load_hardware(path)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is a mapping"),
        ("[1, 2]", "is a mapping"),
        ("a: [", ":1: not YAML"),
        ("device: a\ndevice: b\n", ":2: device: given twice"),
        ("compute: 3\n", ":1: compute: must be a mapping"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(HardwareError) as error:
        load_hardware(path)
    assert expected in str(error.value)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(HardwareError):
        load_hardware(path)


def test_a_measured_table_needs_a_time_for_each_size(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text((PROFILES / "h200-sxm.yaml").read_text().replace("all-gather: [68.72e-6, ", "all-gather: ["))
    with pytest.raises(HardwareError, match="node_link.measured.4.all-gather: needs one time for each of 8 rising sizes"):
        load_hardware(path)


def test_free_links_are_free() -> None:
    link = load_hardware("test-free-links").node_link
    assert link.latency_s == (0.0, 0.0)
    assert set(link.bytes_per_s.values()) == {float("inf")}
