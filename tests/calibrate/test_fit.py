"""A profile fitted to the timings of a machine of a known profile predicts that machine; what was not measured is the base's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from calibrate_cases import GPU, evidence, timed, works

from autoplan.calibrate.evidence import Measured
from autoplan.calibrate.fit import fit
from autoplan.calibrate.works import Collective
from autoplan.cost.hardware import KINDS, load_hardware

H200 = load_hardware("h200-sxm")


@pytest.mark.parametrize(("base", "same_device", "tolerance"), [("h100-sxm", True, 0.005), ("a100-80g-sxm", False, 0.04)])
def test_predictions_are_those_of_the_machine_that_was_timed(base: str, same_device: bool, tolerance: float) -> None:
    """Without noise. From another device's profile attention is off by up to 4 %: where it saturates (at_flops) is that profile's.

    Of links the sizes of tables are as measured; between them lines in logarithms are up to 5 % above a sum of latency and bytes.
    """
    some = works(quick=False, others=() if same_device else ("float32", "float64"))
    found = fit(evidence(base, timed(some, H200), same_device=same_device)).hardware
    for work in some:
        allowed = (0.05 if work.between else 0.001) if isinstance(work, Collective) else tolerance
        assert work.seconds(found) == pytest.approx(work.seconds(H200), rel=allowed), work


def test_noise_of_three_percent_moves_predictions_by_less() -> None:
    """Families of a dozen timings by less than a timing is off; what has two timings, or is a difference, is left to them."""
    some = [work for work in works(quick=False) if work.family in ("products", "attention forward", "attention backward")]
    found = fit(evidence("h100-sxm", timed(some, H200, noise=0.03), same_device=True)).hardware
    errors = sorted(abs(work.seconds(found) / work.seconds(H200) - 1) for work in some)
    assert errors[len(errors) // 2] < 0.02 and errors[-1] < 0.1


def test_the_formula_of_links_is_near_the_tables_it_replaces() -> None:
    """Latency plus bytes over bandwidth is within 35 % of every timing that the H200 tables give, most within 10."""
    some = [work for work in works(4, 4) if isinstance(work, Collective)]
    link = fit(evidence("a100-80g-sxm", timed(some, H200))).hardware.node_link
    formula = H200.changed(node_link=link.without_tables())
    errors = sorted(abs(work.seconds(formula) / work.seconds(H200) - 1) for work in some)
    assert errors[len(errors) // 2] < 0.1 and errors[-1] < 0.6
    assert set(link.measured) == {(group, kind) for group in (2, 4) for kind in KINDS}


def test_the_network_is_told_from_the_links() -> None:
    """Two hosts of eight: all groups across hosts share the cards."""
    site = replace(GPU, ranks=16)
    truth = H200.changed(network=replace(H200.network, latency_s=4e-5, bytes_per_s=1.5e11))
    some = [work for work in works(16, 8) if isinstance(work, Collective)]
    found = fit(evidence("h200-sxm", timed(some, truth), site, same_device=True)).hardware.network
    assert found.bytes_per_s == pytest.approx(1.5e11, rel=0.1)
    assert found.latency_s == pytest.approx(4e-5, rel=0.3)


def test_the_peak_is_the_datasheets_only_where_the_base_is_of_this_device() -> None:
    some = [work for work in works() if work.family == "products"]
    same = fit(evidence("h200-sxm", timed(some, H200), same_device=True))
    other = fit(evidence("a100-80g-sxm", timed(some, H200)))
    assert same.hardware.compute.flops_per_s == H200.compute.flops_per_s and "compute.flops_per_s" not in str(same.sources)
    assert other.hardware.compute.flops_per_s["bfloat16"] < H200.compute.flops_per_s["bfloat16"]
    assert "no datasheet" in other.sources["compute.flops_per_s.bfloat16"]


def test_what_was_not_measured_is_as_in_the_base() -> None:
    found = fit(evidence("h100-sxm", Measured(), same_device=True))
    base = load_hardware("h100-sxm")
    assert (found.hardware.compute, found.hardware.node_link, found.hardware.host) == (base.compute, base.node_link, base.host)
    assert set(found.sources) == {"device", "memory_gib", "gpus_per_node"}


def test_what_links_cannot_do_keeps_the_bases_number_and_there_are_no_tables() -> None:
    """A table needs every kind."""
    some = [work for work in works(2, 2) if isinstance(work, Collective) and work.kind != "all-to-all"]
    found = fit(evidence("a100-80g-sxm", timed(some, H200)))
    base = load_hardware("a100-80g-sxm").node_link
    link = found.hardware.node_link
    assert link.bytes_per_s["all-to-all"] == base.bytes_per_s["all-to-all"] and link.latency_s[1] == base.latency_s[1]
    assert "as a100-80g-sxm" in found.sources["node_link.bytes_per_s.all-to-all"]
    assert "as a100-80g-sxm" in found.sources["node_link.latency_s.per_doubling"]
    assert link.measured == {}
