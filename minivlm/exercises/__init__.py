"""Checks of the exercises, one module a notebook: what a reader wrote, judged in words."""
