import pytest


@pytest.fixture(scope="session")
def untrained_llama(tmp_path_factory):
    """The folder of a llama with two layers, random weights and a context of 64 tokens."""
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, dtype="float32",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "untrained-llama"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder
