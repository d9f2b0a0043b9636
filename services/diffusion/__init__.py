"""The diffusion service: renders the jobs of the render stage with a step-level batching engine."""
