"""Editing by instruction (LLMGA.md §5.4): find what is to change, take the picture back into noise, and out again.

DiffEdit's mask (Couairon et al. 2022), edit-friendly inversion (Huberman-Spiegelglas et al. 2023) and sampling with
the noises that it found, each a phase of the step engine.
"""
