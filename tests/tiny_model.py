"""A small Llama, trained on the spot, for tests that need a real model: 0.5 M parameters, bytes in, bytes out.

Trained for some seconds on Python's own documentation (``pydoc_data.topics``), it is far better than chance
(5.5 nats per byte) and its weights have the structure that training gives. The same seed gives the same weights.
"""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 128


def text() -> torch.Tensor:
    """Bytes of Python's documentation as token ids, ``[tokens]``."""
    from pydoc_data.topics import topics

    return torch.tensor(list("\n".join(topics[name] for name in sorted(topics)).encode()), dtype=torch.long)


def batch(tokens: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """``size`` windows of the text, ``[size, CONTEXT]``."""
    starts = torch.randint(len(tokens) - CONTEXT, (size,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([tokens[start : start + CONTEXT] for start in starts.tolist()])


def train(steps: int = 150, seed: int = 0) -> LlamaForCausalLM:
    """Train the model. The last tenth of the text is never seen."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    tokens = text()
    tokens = tokens[: len(tokens) * 9 // 10]
    for step in range(steps):
        windows = batch(tokens, 16, seed * steps + step)
        loss = model(input_ids=windows, labels=windows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def save(model: LlamaForCausalLM, folder: Path, shard_size: str = "50GB") -> Path:
    """Write the model in bfloat16 as a Hugging Face checkpoint and return the folder."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=shard_size)
    return folder
