"""The training loop, its data order, checkpoints, and what is built on them."""
