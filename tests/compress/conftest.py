from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sharded_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in five files, with other files beside them. Do not write into it."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model") / "sharded"
    LlamaForCausalLM.from_pretrained(tiny_llama, dtype="bfloat16").save_pretrained(folder, max_shard_size="250KB")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "code").mkdir()
    (folder / "code" / "modeling.py").write_text("pass")
    assert len(list(folder.glob("*.safetensors"))) == 5
    return folder
