"""`lascl-predict`, killed (SIGKILL) in the middle of a row: `killed_predict.py ROW [arguments]`; groups of eight files.
See test_predict_proofs.py."""

import os
import signal
import sys

from lascl.inference import files, outputs
from lascl.predict import main


row = int(sys.argv[1])
files.GROUP_FILES = 8
written, whole = [], outputs.RowFile.write


def write(self, path, rows):
    written.append(path)
    if len(written) == row:
        self._file.write(rows[: (7 * row) % (len(rows) + 1)])  # anything between nothing and all
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, path, rows)


outputs.RowFile.write = write
main(sys.argv[2:])
