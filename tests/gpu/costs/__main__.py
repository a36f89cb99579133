"""``python -m tests.gpu.costs [--write]``: the tables of docs/gpu.md, printed, or put there too."""

import sys

from tests.gpu.costs.table import TABLES, write

if __name__ == "__main__":
    for name, make in TABLES.items():
        table = make()
        print(f"{name}\n\n{table}\n")
        if "--write" in sys.argv[1:]:
            write(name, table)
