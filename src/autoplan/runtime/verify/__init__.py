"""A plan run on this machine's processors, beside one device: loss, gradients, collectives."""
