"""Recipes: one YAML file for each run, beside the schema that it is read by."""

from training.recipes.command import Options, options
from training.recipes.recipe import PlanSettings, Recipe, RecipeError, load_recipe

__all__ = ["Options", "PlanSettings", "Recipe", "RecipeError", "load_recipe", "options"]
