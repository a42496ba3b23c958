"""Runs a notebook from its first cell to its last: `python tests/notebook.py examples/tour.ipynb OUTPUT`.

OUTPUT has what it printed and drew, less what programs say on stderr, which differs from machine to machine.
`make notebook` writes it over the notebook itself.
"""

import sys
import tempfile

import nbformat
from nbclient import NotebookClient


def main(path: str, output: str):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:  # what it trains is not kept
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
    nbformat.write(notebook, output)


if __name__ == "__main__":
    main(*sys.argv[1:])
