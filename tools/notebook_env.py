"""The environment in which a notebook runs, for `execute_notebooks.py` and for pytest alike.

A notebook's outputs are compared byte for byte, so whatever could change them is settled here,
before a
kernel starts: the number of threads, the hash seed, progress bars, the name that a warning gives to
a cell, and what a user has configured for IPython or matplotlib. Nothing may reach the network.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = (
    ROOT / ".cache" / "notebooks"
)  # profiles and fonts of the kernels; ignored by git, safe to delete
CELL_TIMEOUT = 300  # seconds; pyproject.toml gives nbval the same number

DEAD_END = "http://127.0.0.1:9"  # the discard port: a download fails at once, and says so
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")

SETTINGS = {
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(ROOT),
    "PYTHONUTF8": "1",
    "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "IPYKERNEL_CELL_NAME": "<cell>",
    "IPYTHONDIR": str(CACHE / "ipython"),
    "JUPYTER_RUNTIME_DIR": str(CACHE / "runtime"),
    "JUPYTER_PLATFORM_DIRS": "1",
    "MPLCONFIGDIR": str(CACHE / "matplotlib"),
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger of a kernel writes to stderr
    "HF_HUB_OFFLINE": "1",
    **dict.fromkeys(PROXIES, DEAD_END),
}

# What a user prefers elsewhere must not change what a cell shows. Without MPLBACKEND a kernel draws
# inline.
UNSET = ("MPLBACKEND", "MATPLOTLIBRC", "MINIVLM_DEVICE", "PYTHONWARNINGS", "no_proxy", "NO_PROXY")


def apply() -> None:
    """Set the environment of this process, and so of the kernels that it starts.

    Call it before torch or matplotlib is imported. It also builds matplotlib's font cache: on a new
    machine the first import in a kernel would announce that on stderr, which would count as an
    output of the cell.
    """
    for name in UNSET:
        os.environ.pop(name, None)
    os.environ.update(SETTINGS)
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        Path(SETTINGS[name]).mkdir(parents=True, exist_ok=True)
    import matplotlib.font_manager  # noqa: F401
