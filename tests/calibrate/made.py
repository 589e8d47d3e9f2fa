"""Tables of measurements made up by a model whose constants are known."""

import numpy as np

from nearpeak.cost.calibration import join
from nearpeak.cost.operators import gemm_work
from nearpeak.cost.tables import platform_named
from nearpeak.formats import code

LAUNCH, COMPUTE, TRAFFIC = 6e-6, 0.7, 0.8
SITES = [(n, k) for n in (1024, 2048, 5120, 8192, 14336) for k in (1024, 2880, 4096, 8192)]
ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


def gemm(gpu="l40s", engine="vllm", fmt="bfloat16", noise=0.04, slower=1.0, seed=0):
    """A table of products on a device: a launch, and shares of both peaks, with lognormal noise."""
    shapes = np.array([(m, n, k) for n, k in SITES for m in ROWS], float)
    m, n, k = shapes.T
    work = gemm_work(platform_named(gpu, engine), m, n, k, np.full(m.size, code(fmt)))
    time = LAUNCH + join(work.compute / COMPUTE, work.traffic / TRAFFIC)
    time = slower * time * np.exp(noise * np.random.default_rng(seed).standard_normal(m.size))
    names = {"gpu": gpu, "backend": engine, "backend_version": "1.0", "kernel_source": "default", "gemm_dtype": fmt}
    columns = {name: np.full(m.size, value, object) for name, value in names.items()}
    return columns | {"m": m.astype(int), "n": n.astype(int), "k": k.astype(int), "seconds": time}


def joined(*tables):
    """Tables in one."""
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
