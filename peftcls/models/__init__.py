"""The base model, what is trained of it, and the adapter folder."""
