"""What a rank runs: pieces of local tensors, with the collectives of parameters and activations between and inside them."""
