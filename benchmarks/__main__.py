"""``python -m benchmarks [NAME]``, from the root of a checkout with torch installed."""

import sys

from benchmarks import bench_clip

BENCHMARKS = {"gpt2": bench_clip.run_gpt2, "small": bench_clip.run_small}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS:
            sys.exit(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        BENCHMARKS[name]()
