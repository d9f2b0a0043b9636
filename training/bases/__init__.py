"""Makers of base models from nothing, which only the tiny pair needs."""
