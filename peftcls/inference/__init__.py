"""Saved folder to answers: one adapter, several, or a file of rows."""
