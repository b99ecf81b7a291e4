"""The small models that are trained here, on scenes."""
