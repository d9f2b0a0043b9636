"""The tiny world: an endless supply of labeled scenes, with their pictures, captions, requests, edits and questions."""

from training.world.captions import caption_of
from training.world.drawing import draw
from training.world.objects import Scene
from training.world.scenes import sample_scene

__all__ = ["Scene", "caption_of", "draw", "sample_scene"]
