"""Shared by every test. A bare `pytest` runs the unit tests, then every cell of every notebook,
strictly.
"""

import pytest

import notebook_env


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before torch is imported and before a kernel starts.

    nbval takes a relative sanitizer file from the current folder; an ini file cannot hold an
    absolute path.
    """
    notebook_env.apply()
    import matplotlib

    matplotlib.use("Agg")  # in this process, for the unit tests; a kernel draws inline
    if config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(notebook_env.ROOT / "tests" / "nbval_sanitize.cfg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first: they are quick, and say more precisely what is wrong."""
    items.sort(key=lambda item: item.path.suffix == ".ipynb")  # stable, so cells stay in order


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Every test draws the same random numbers, whichever tests ran before it."""
    import torch

    torch.manual_seed(0)
