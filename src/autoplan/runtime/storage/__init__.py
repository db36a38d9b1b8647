"""Weights and checkpoints: in from files of whole tensors, out again, and aside between steps."""
