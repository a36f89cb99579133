"""``python -m benchmarks [NAME]``, from the root of a checkout with torch installed."""

import sys

from benchmarks import bench_gpt2

BENCHMARKS = {"gpt2": bench_gpt2.run}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS:
            sys.exit(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        BENCHMARKS[name]()
