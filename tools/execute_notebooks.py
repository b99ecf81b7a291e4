"""Execute notebooks in place and write them in their canonical form.

    python tools/execute_notebooks.py                          # all of them, solutions too
    python tools/execute_notebooks.py notebooks/01_bpe_tokenizer.ipynb
    python tools/execute_notebooks.py --format NOTEBOOK...     # canonical form only: runs nothing
    python tools/execute_notebooks.py --check                  # list what is wrong, write nothing

A notebook whose cell fails is left as it was. Figures are stored in few colours. A second run
changes nothing but the outputs of cells that are tagged `nbval-ignore-output`.
"""

import argparse
import base64
import io
import os
import subprocess
import sys
import time
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image, ImageChops, ImageFilter, ImageStat

import notebook_env
from notebook_checks import canonical_text, main_notebooks, problems, read, solution_notebooks


class ThisPython(AsyncKernelManager):
    """Starts `python3` with the interpreter of this process, whatever kernels the machine has
    installed.
    """

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


def execute(nb: NotebookNode, folder: Path) -> str | None:
    """Run all cells of `nb` in place, with `folder` as current folder; return what went wrong, or
    None.
    """
    running = {}

    def remember(cell: NotebookNode, cell_index: int) -> None:
        running.update(name=f"cell {cell_index} ({cell.get('id', 'no id')})")

    client = NotebookClient(
        nb,
        kernel_name="python3",
        kernel_manager_class=ThisPython,
        timeout=notebook_env.CELL_TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
        on_cell_execute=remember,
    )
    try:
        client.execute(
            stderr=subprocess.DEVNULL
        )  # the kernel's own remarks; a cell's stderr is an output
    except CellExecutionError as error:
        return f"{running['name']} raises {error.ename}: {error.evalue}\n{error.traceback}"
    except CellTimeoutError:
        return f"{running['name']} takes more than {notebook_env.CELL_TIMEOUT} s"
    except DeadKernelError:
        return f"{running['name']} kills its kernel"
    return None


def in_few_colors(png: str) -> str:
    """A figure (base64) in 64 or 256 colours, a third of the bytes, or as it is.

    As it is where both would look different: on the whole, or in any spot of 3 x 3 pixels, since a
    small blue star among a hundred other colours must stay blue.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    whole = image.convert("RGB")
    for colors in (64, 256):
        options = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 3, "dither": Image.Dither.NONE}
        few, small = whole.quantize(colors, **options), io.BytesIO()
        difference = ImageChops.difference(whole, few.convert("RGB"))
        spots = difference.filter(ImageFilter.BoxBlur(1)).getextrema()
        worst = max(largest for _, largest in spots)
        if max(ImageStat.Stat(difference).mean) < 1 and worst < 16:  # of 255 levels
            few.save(small, "PNG", optimize=True)
            return base64.b64encode(small.getvalue()).decode()
    return png


def slim(nb: NotebookNode) -> None:
    """Write every figure of a notebook ``in_few_colors``."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = in_few_colors(output.data["image/png"])


def write(path: Path, text: str) -> bool:
    """Replace the file in one step if its text is new; return whether it was."""
    if path.read_text(encoding="utf-8") == text:
        return False
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
    return True


def refresh(path: Path, run: bool) -> bool:
    """Execute (if `run`) and normalise one notebook, report in one line, and return whether all
    went well.
    """
    start = time.perf_counter()
    print(f"{os.path.relpath(path)} ...", end=" ", flush=True)
    nb = read(path)
    error = execute(nb, path.resolve().parent) if run else None
    if error:
        print(f"FAILED after {time.perf_counter() - start:.1f} s, the file is as it was\n  {error}")
        return False
    slim(nb)
    changed = write(path, canonical_text(nb))
    print(
        f"{time.perf_counter() - start:.1f} s, {'changed' if changed else 'unchanged'}", flush=True
    )
    return True


def check(path: Path) -> bool:
    """List what the hygiene test would say about one notebook; return whether that is nothing."""
    found = problems(path)
    print("\n  ".join([os.path.relpath(path), *(found or ["ok"])]))
    return not found


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; without paths it means every notebook of the course."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all, solutions too")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--check", action="store_true", help="list what is wrong; execute and write nothing"
    )
    mode.add_argument(
        "--format", action="store_true", help="write the canonical form without executing"
    )
    arguments = parser.parse_args(argv)
    for path in arguments.notebooks:
        if path.suffix != ".ipynb" or not path.is_file():
            parser.error(f"{path} is not a notebook file")
    arguments.notebooks = arguments.notebooks or [*main_notebooks(), *solution_notebooks()]
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Handle all the notebooks, also after one has failed; return 1 if any has."""
    notebook_env.apply()
    arguments = parse_arguments(argv)
    if arguments.check:
        results = [check(path) for path in arguments.notebooks]
    else:
        results = [refresh(path, run=not arguments.format) for path in arguments.notebooks]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
