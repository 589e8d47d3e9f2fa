"""A model in a local folder: what its config says of a run, checked before anything is loaded; then the model itself.

Nothing here reaches for the network: a folder has all that is needed, or the error says what is missing.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nearpeak.errors import NearpeakError, UsageError
from nearpeak.measure.measurement import What
from nearpeak.measure.runtime import (
    DTYPES,
    causal_language_model,
    chosen_device,
    memory_errors,
    memory_free,
    out_of_memory,
    torch,
)

_FROM_FOLDER = {"local_files_only": True, "trust_remote_code": False}
"""What transformers is told whenever it reads a folder: ask no server, run no code that lies there."""


@dataclass(frozen=True)
class Run:
    """What is to be measured, every choice made: no ``auto`` is left.

    Attributes:
        folder: the model's. batch: sequences at once. isl, osl: tokens of each prompt and of each answer.
        device, dtype, threads: where and how it runs; ``dtype`` is a name of ``DTYPES``.
        random_weights: fresh weights drawn from the config's distributions instead of the folder's.
        seed: of the token ids, and of the weights where they are random.
        family, digest: ``model_type`` of the config and the first digits of its SHA-256: same digest, same shapes.
        quantization: method named in the config, or None.
    """

    folder: Path
    batch: int
    isl: int
    osl: int
    device: str
    dtype: str
    threads: int
    random_weights: bool
    seed: int
    family: str
    digest: str
    quantization: str | None

    @property
    def what(self) -> What:
        """The inputs as a Measurement keeps them; of the folder only its name."""
        return {
            "model": self.folder.resolve().name,
            "family": self.family,
            "config": self.digest,
            "quantization": self.quantization,
            "engine": "transformers",
            "batch": self.batch,
            "isl": self.isl,
            "osl": self.osl,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "random_weights": self.random_weights,
            "seed": self.seed,
        }


def planned(
    folder: Path | str,
    batch: int,
    isl: int,
    osl: int,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 1,
    random_weights: bool = False,
    seed: int = 0,
) -> Run:
    """Check what is asked against the model's config and this machine, and settle what was left to choose.

    ``dtype`` "auto" is the one in which the checkpoint says it is stored. Loads neither transformers nor weights.

    Raises:
        UsageError: a size below 1, no such folder, no config in it, a context too short for ``isl + osl``, an unknown
            device or dtype, or a config that names no dtype.
    """
    for name, value in (("batch", batch), ("isl", isl), ("osl", osl)):
        if value < 1:
            raise UsageError(f"{name} {value} must be 1 or more")
    folder = Path(folder)
    text = _config_text(folder)
    try:
        config = msgspec.json.decode(text, type=dict[str, Any])
        language = config | config.get("text_config", {})
    except (msgspec.DecodeError, TypeError) as e:
        raise UsageError(f"{folder / 'config.json'} is no JSON object of settings: {e}") from e
    context = language.get("max_position_embeddings") or language.get("n_positions")
    if context and isl + osl > context:
        raise UsageError(
            f"isl {isl} + osl {osl} = {isl + osl} tokens, but the model's context holds {context} "
            "(max_position_embeddings); ask for shorter ones"
        )
    return Run(
        folder=folder,
        batch=batch,
        isl=isl,
        osl=osl,
        device=chosen_device(device),
        dtype=_dtype(dtype, language, folder),
        threads=threads,
        random_weights=random_weights,
        seed=seed,
        family=str(config.get("model_type", "unknown")),
        digest=hashlib.sha256(text).hexdigest()[:12],
        quantization=(config.get("quantization_config") or {}).get("quant_method"),
    )


def skeleton(run: Run) -> Any:  # noqa: ANN401 - as load
    """The model of a run with shapes and no values: torch's meta device, which takes no memory.

    Raises:
        NearpeakError: transformers is missing, or knows no such causal language model.
    """
    auto_config, auto_model = causal_language_model()
    try:
        config = auto_config.from_pretrained(run.folder, **_FROM_FOLDER)
        with torch().device("meta"):
            return auto_model.from_config(config, dtype=getattr(torch(), DTYPES[run.dtype]))
    except Exception as e:  # transformers fails in many ways, without a common ancestor
        raise NearpeakError(f"transformers cannot load a causal language model from {run.folder}: {e}") from e


def load(run: Run) -> Any:  # noqa: ANN401 - a transformers model, whose type transformers does not export
    """The model of a run, in evaluation mode on its device.

    Raises:
        NearpeakError: transformers is missing, cannot read the folder, finds no weights or not all of them, or memory
            does not suffice.
    """
    auto_config, auto_model = causal_language_model()
    _check_room(run)
    dtype = getattr(torch(), DTYPES[run.dtype])
    with memory_errors("the model alone does not fit: take a smaller or a quantized one, or another device"):
        try:
            if run.random_weights:
                torch().manual_seed(run.seed)
                model = auto_model.from_config(auto_config.from_pretrained(run.folder, **_FROM_FOLDER), dtype=dtype)
            else:
                model, report = auto_model.from_pretrained(
                    run.folder, dtype=dtype, output_loading_info=True, **_FROM_FOLDER
                )
                _check_complete(run, report["missing_keys"])
        except Exception as e:  # as in skeleton
            if isinstance(e, NearpeakError) or out_of_memory(e):
                raise
            raise NearpeakError(f"transformers cannot load a causal language model from {run.folder}: {e}") from e
        return model.eval().to(run.device)


def _config_text(folder: Path) -> bytes:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; name one that holds a model's config.json and its weights")
    try:
        return (folder / "config.json").read_bytes()
    except OSError as e:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise UsageError(f"{folder} has no readable config.json (it holds {inside})") from e


def _dtype(asked: str, config: dict[str, Any], folder: Path) -> str:
    names = {spelling: name for name, spelling in DTYPES.items()}
    if asked != "auto":
        name = asked if asked in DTYPES else names.get(asked)
        if name is None:
            raise UsageError(f"dtype {asked!r} cannot be computed in here; allowed: auto, {', '.join(DTYPES)}")
        return name
    stored = config.get("dtype") or config.get("torch_dtype")
    if stored not in names:
        raise UsageError(f"{folder / 'config.json'} says dtype {stored!r}; name one yourself: {', '.join(DTYPES)}")
    return names[stored]


def _check_room(run: Run) -> None:
    """Refuse a checkpoint that is larger than the free memory before it is read for minutes and the process killed."""
    files = [p for pattern in ("*.safetensors", "pytorch_model*.bin") for p in run.folder.glob(pattern)]
    size, free = sum(p.stat().st_size for p in files), memory_free(run.device)
    if not run.random_weights and free is not None and size > free:
        raise NearpeakError(
            f"out of memory: the weights in {run.folder} are {size / 1e9:.1f} GB, and {run.device} has "
            f"{free / 1e9:.1f} GB free; take a smaller or quantized model, or another device"
        )


def _check_complete(run: Run, missing: Collection[str]) -> None:
    """Refuse weights that transformers would complete with random ones, saying so only in its log."""
    if missing:
        raise NearpeakError(
            f"the weights in {run.folder} lack {len(missing)} tensors of the model, such as {sorted(missing)[0]}; "
            "complete them, or measure with random weights"
        )
