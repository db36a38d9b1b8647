"""torchrun --nproc-per-node N apply.py --plan plan.yaml [--steps K] [--data FILE] ...: run a model as its plan says."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # a clone runs without being installed

from autoplan.runtime.train import main

if __name__ == "__main__":
    main()
