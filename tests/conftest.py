"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# In CI the examples of property tests are the same at every run; elsewhere new ones are tried each time.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small trained Llama checkpoint, one bfloat16 file. Skips without torch. Do not write into it."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import tiny_model

    return tiny_model.save(tiny_model.train(), tmp_path_factory.mktemp("model") / "tiny-llama")
