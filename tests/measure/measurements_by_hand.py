"""Measurements to test with."""

from nearpeak.measure import Effort, Figure, Fingerprint, Gpu, Measurement, Prediction, Sample, record

BRIEF = Effort(warmup=1, repeats=2, most=2, budget=60.0)
"""Enough to run everything once; too little to say anything of time."""

PLATFORM = Fingerprint(
    cpu="a CPU", isa=("avx2",), cores=4, threads=1, memory=2**34, system="Linux 6 x86_64", governor=None,
    python="3.12.1", torch="2.9.0", transformers=None, gpus=(Gpu("a GPU", "570", 2**36, 1.5e9),),
)  # fmt: skip


def a_measurement(batch: int = 1, predicted: bool = True) -> Measurement:
    return record(
        Measurement(
            what={"model": "tiny ✓", "batch": batch, "share": 0.25, "random_weights": True, "quantization": None},
            figures={"ttft": Figure(0.2, 0.1 + 0.2 - 0.15, 0.3, 0.96), "memory": Figure(1e9, 1e9, 1e9, 0.0)},
            fingerprint=PLATFORM,
            predictions={"ttft": Prediction(0.1, 0.05, 0.25, "datasheet")} if predicted else {},
            samples={"ttft": Sample((0.2, 0.1 + 0.2, 0.15), (1.5,), "budget")},
        )
    )
