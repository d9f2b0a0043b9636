"""Offline training: the random and tiny checkpoints, the two LLMGA stages, restoration and evaluation."""
