"""The tiny pair from nothing to its model cards: `make tiny`, or `python -m training.tiny`.

The chain runs the recipes `training/recipes/tiny-*.yaml` one after another, each by the stage's own command, and puts
what they leave together as `models/llmga-tiny`. Then every figure is measured on held-out scenes and written into the
model cards. A stage that has its result is passed over, one that was interrupted goes on where it was.
"""
