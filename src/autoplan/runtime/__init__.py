"""A plan and a module become a parallel module: local computation, planned redistributions, and nothing else."""
