"""Which hardware to plan for where nobody says: the GPU found here decides."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from autoplan.cli.options import said_by
from autoplan.cli.output import tell

if TYPE_CHECKING:
    from autoplan.cost.hardware import Hardware

ASSUMED = "h100-sxm"
# As torch.cuda.get_device_name gives them: "NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB". The PCIe and NVL
# cards of these names have other links and clocks, and no profile.
_PROFILES = (
    (re.compile(r"H200(?! NVL)"), "h200-sxm"),
    (re.compile(r"H100 (80GB HBM3|SXM)"), "h100-sxm"),
    (re.compile(r"A100-SXM\d?-80GB"), "a100-80g-sxm"),
)


def choose_hardware(name: str | None, source: str | None) -> Hardware:
    """The profile of that name, which the file `source` gave if any, or that of the GPU here; what is assumed is said on stderr."""
    from autoplan.cost.hardware import load_hardware

    with said_by(source):
        return load_hardware(_found_here() if name is None else name)


def _found_here() -> str:
    device = device_name()
    if device is None:
        tell(f"no GPU here: planning for {ASSUMED}; --hardware names another")
        return ASSUMED
    name = profile_of(device)
    if name is None:
        tell(f"no profile for {device}: planning for {ASSUMED}; --hardware names another, or a file")
        return ASSUMED
    tell(f"planning for {name}, the GPU here; --hardware names another")
    return name


def device_name() -> str | None:
    """What the first GPU here is called, None without one."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def profile_of(device: str) -> str | None:
    """The profile of a GPU by its CUDA device name, None where there is none."""
    return next((name for pattern, name in _PROFILES if pattern.search(device)), None)
