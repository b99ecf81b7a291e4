"""The dataset: small images of flat objects, with captions, questions and boxes that a program can
judge.
"""

from minivlm.scenes.drawing import Scene, is_true, load, sample

__all__ = ["Scene", "is_true", "load", "sample"]
