"""The solver on arrays alone: choose a strategy per node, pay for nodes and pairs, keep every row of memory within its limit."""
