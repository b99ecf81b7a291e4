"""Published checkpoints: read into the course's own models, and written so that other libraries
read them.
"""

from minivlm.pretrained.loading import from_pretrained, save_pretrained

__all__ = ["from_pretrained", "save_pretrained"]
