"""Row 183, for real: AES-GCM on one thread, torch layers on the other."""

import os
import statistics

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("cryptography")

from nearpeak.decode import confidential  # noqa: E402
from nearpeak.decode.confidential import Swap, compare, host_weights  # noqa: E402
from nearpeak.decode.feeding import fed, random_gpt  # noqa: E402
from nearpeak.errors import NearpeakError, UsageError  # noqa: E402

two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs a second core: encryption has its own")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(100, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seed", range(3))
def test_with_a_fifth_of_the_guesses_wrong_every_tensor_decrypts_exactly(seed: int):
    model, ids = random_gpt(12, 64, seed), tokens(2, 8)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        of, weights = host_weights(model)
        with Swap(of, weights, "ahead", wrong=0.2, seed=seed, verify=True) as swap:
            with fed(of, swap):
                for _ in range(8):
                    assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
            swap.coming[1][-1].result()  # type: ignore[index]
            count = swap.count
            assert swap.exact == count.copies == 8 * 12 + 1
            assert swap.received == count.copies + count.nops == swap.channel.next
    missed = count.copies - count.hits
    assert 0.05 * count.copies < missed < 0.45 * count.copies
    # A wrong guess costs itself and the ciphertext that it takes the place of, not all that were made ahead.
    assert count.encrypted - count.copies <= 2 * missed + swap.depth


def test_right_guesses_encrypt_each_copy_once():
    model = random_gpt(12, 64)
    found = compare(model, tokens(2, 8), repeats=2)
    assert found.identical
    ahead = found.counts["ahead"]
    assert ahead.hits >= ahead.copies - 1
    assert ahead.encrypted <= ahead.copies + 3
    assert found.counts["on_demand"].encrypted == found.counts["on_demand"].copies


def test_a_layer_that_changed_is_encrypted_again_and_no_other():
    model, ids = random_gpt(8, 64), tokens(2, 8)
    with torch.inference_mode():
        of, weights = host_weights(model)
        with Swap(of, weights, "ahead", verify=True) as swap, fed(of, swap):
            before = model(input_ids=ids, use_cache=False).logits
            model(input_ids=ids, use_cache=False)
            encrypted = swap.count.encrypted
            changed = weights[2].clone()
            changed.view(torch.float32).mul_(1.5)
            swap.write(2, changed)
            assert swap.count.encrypted - encrypted <= 1
            after = model(input_ids=ids, use_cache=False).logits
            assert not torch.equal(before, after)
            assert swap.count.encrypted - swap.count.copies <= swap.depth + 1
        with Swap(of, weights, "clear") as clear, fed(of, clear):
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, after)


def test_a_ciphertext_out_of_turn_does_not_pass():
    from cryptography.exceptions import InvalidTag

    model = random_gpt(4, 64)
    with torch.inference_mode():
        of, weights = host_weights(model)
        with Swap(of, weights, "ahead") as swap, fed(of, swap):
            model(input_ids=tokens(1, 4), use_cache=False)
            swap.received += 1
            with pytest.raises(InvalidTag):
                [model(input_ids=tokens(1, 4), use_cache=False) for _ in range(2)]


def test_bad_questions_are_refused():
    of, weights = host_weights(random_gpt(4, 64))
    with pytest.raises(UsageError, match="mode"):
        Swap(of, weights, "sometimes")  # type: ignore[arg-type]
    with Swap(of, weights, "clear") as swap:
        swap.take(0)
        with pytest.raises(NearpeakError, match="order"):
            swap.take(2)


def test_the_topic_answers():
    given = {o.name: o.default for o in confidential.TOPIC.options} | {"hidden": 64, "layers": 8, "repeats": 1}
    found = confidential.TOPIC.explain(**given | {"wrong": 0.2})
    assert found.figures["identical_logits"]
    assert len(found.tables[0].rows) == 3


@pytest.mark.slow  # two threads need two cores for themselves
@two_cores
def test_encrypting_ahead_is_faster_than_on_demand():
    found = compare(random_gpt(6, 512), tokens(4, 32), 3)
    assert found.identical
    assert found.seconds["ahead"] < found.seconds["on_demand"]


@two_cores
@pytest.mark.slow
def test_encrypting_ahead_loses_under_half_of_what_encrypting_on_demand_loses():
    """Median over three models of the ratio of losses."""
    runs = [compare(random_gpt(12, 512, seed), tokens(4, 32), 5, seed=seed) for seed in range(3)]
    assert all(run.identical for run in runs)
    assert statistics.median(run.loss("on_demand") for run in runs) > 0.05
    assert statistics.median(run.loss("ahead") / run.loss("on_demand") for run in runs) < 0.5
