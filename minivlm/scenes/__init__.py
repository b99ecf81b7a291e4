"""The dataset: small images of flat objects, and a program that judges what is said about them.

scene.py says what a scene is, sampling.py draws scenes at random, drawing.py renders them, files.py
holds them on disk, reading.py reads images back, pixels.py makes tensors of them. What can be said
and asked is in grammar.py (captions), questions.py, instructions.py (conversations) and tasks.py
(boxes).
"""

from minivlm.scenes.files import load
from minivlm.scenes.sampling import sample
from minivlm.scenes.scene import Scene, is_true

__all__ = ["Scene", "is_true", "load", "sample"]
