"""Restoration of painted pictures with DiffRIR: seams and color steps go, the known pixels stay (LLMGA.md §6)."""
