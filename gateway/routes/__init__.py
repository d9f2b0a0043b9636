"""The calls, one module per resource."""
