"""File formats that are nobody's paper: they import nothing of the package."""
