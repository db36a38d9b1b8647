"""What a decision costs on a machine: seconds and bytes, from profiles. No torch, no solver."""
