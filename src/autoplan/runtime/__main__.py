"""`python -m autoplan.runtime --plan plan.yaml` under torchrun."""

from autoplan.runtime.train import main

if __name__ == "__main__":
    main()
