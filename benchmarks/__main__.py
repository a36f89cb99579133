"""``python -m benchmarks [NAME ...]``, from the root of a checkout with torch installed. Without names: the CPU's.

``projection`` compares with those of optax, jaxopt and pyproximal that are installed;
``projection-search`` times the ways to an L1 ball's threshold. ``gpu`` needs a CUDA device, PyTorch
for CUDA and CuPy; ``gpu-host`` needs CuPy and no device, and writes its figures with ``--save`` alone.
"""

import sys

from benchmarks import bench_amp, bench_clip, bench_gpu, bench_gpu_host, bench_projection

ON_THE_CPU = {"gpt2": bench_clip.run_gpt2, "small": bench_clip.run_small, "amp": bench_amp.run}
BENCHMARKS = {
    **ON_THE_CPU,
    "projection": bench_projection.run,
    "projection-search": bench_projection.search,
    "gpu": bench_gpu.run,
    "gpu-host": bench_gpu_host.run,
}

if __name__ == "__main__":
    for name in [word for word in sys.argv[1:] if word != "--save"] or ON_THE_CPU:
        if name not in BENCHMARKS:
            sys.exit(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        BENCHMARKS[name]()
