"""Repeatable measurements with their results beside them."""
