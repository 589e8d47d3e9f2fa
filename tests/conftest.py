"""Fixtures that several rooms share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small trained Llama checkpoint, one bfloat16 file. Skips without torch. Do not write into it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import tiny_model

    return tiny_model.save(tiny_model.train(), tmp_path_factory.mktemp("model") / "tiny-llama")
