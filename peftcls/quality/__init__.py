"""What is wrong, or odd, with the rows of all splits, before a training second is spent."""
