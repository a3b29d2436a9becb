"""How a batch runs; nothing here knows what rows mean."""
