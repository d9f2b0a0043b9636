"""The run shell of every training stage: `fit` a model to examples by a plan, in a folder that can be resumed."""

from training.plan import Plan, PlanError
from training.runs.examples import Batch, Examples
from training.runs.fitting import Diverged, Fitted, Stopped, fit
from training.runs.order import seed_of
from training.runs.records import Tags

__all__ = ["Batch", "Diverged", "Examples", "Fitted", "Plan", "PlanError", "Stopped", "Tags", "fit", "seed_of"]
