"""What a row means: how it becomes tokens, what is right, and how an answer is read back."""
