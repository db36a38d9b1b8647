"""`python -m autoplan.runtime --plan plan.yaml` under torchrun."""

import sys

from autoplan.runtime.train import main

if __name__ == "__main__":
    sys.exit(main())
