"""The live engine's policies side by side, on a real model and by the wall clock: `nearpeak live engine`.

Requests come as a Poisson process and are served by one engine that composes each step anew (``iterations``), once with
each policy: chunked prefill with stall-free batching (Agrawal et al. 2024, "Taming Throughput-Latency Tradeoff in LLM
Inference with Sarathi-Serve"), piggybacked decodes in whole tiles (Agrawal et al. 2023, "SARATHI"), one decode loop
that requests join and leave at any step (Yang et al. 2023, "Flover"), and what came before: whole prompts first, batch
after batch (dynamic batching), several instances beside each other. torch is imported when the topic runs.
"""

from nearpeak.simulate.policies import POLICIES, policy
from nearpeak.topic import Explanation, Option, Table, Topic, names, require_positive
from nearpeak.workload.traffic import LogNormal, Traffic, poisson

CHUNKED = ("stall-free", "piggyback")
"""Policies that take prompts in parts: the ones that a small budget is for."""


def _explain(
    policies: tuple[str, ...], instances: int, requests: int, rate: float | None, isl: float, osl: float,
    spread: float, rows: int, budget: int, tbt: float | None, tile: int, model: str | None, hidden: int, layers: int,
    device: str, threads: int, real_time: bool, unchecked: bool, seed: int,
) -> Explanation:  # fmt: skip
    import torch

    from nearpeak.decode import comparison
    from nearpeak.decode.forward import packed
    from nearpeak.decode.iterations import Clock
    from nearpeak.decode.step_times import capacity, step_times, token_budget

    require_positive(requests=requests, isl=isl, osl=osl, spread=spread, rows=rows, budget=budget, tile=tile)
    require_positive(rate=1.0 if rate is None else rate, tbt=1.0 if tbt is None else tbt, threads=threads)
    chosen = [policy(name) for name in policies]
    torch.set_num_threads(threads)
    lengths = Traffic(LogNormal(isl, spread), LogNormal(osl, spread)).sample(requests, seed)
    longest = int((lengths.isl + lengths.osl).max())
    served = comparison.load(model) if model else comparison.random_llama(hidden, layers, longest, seed=seed)
    served = served.to(device)
    vocabulary = served.config.get_text_config().vocab_size
    said = []
    with packed(served):
        if rate is None:
            rate = capacity(served, rows, float(lengths.isl.mean()), float(lengths.osl.mean()))
            said.append(f"{rate:.3g} requests/s is what the engine just serves with all rows busy, by its step times.")
        trace = Traffic(LogNormal(isl, spread), LogNormal(osl, spread), poisson(rate)).sample(requests, seed)
        if tbt is not None:
            chunk = max(8, int(trace.isl.max()))
            batches, parts = (1, max(rows, 2)), (chunk // 4, chunk // 2, chunk)
            grid = step_times(served, batches, (1, max(longest, 2)), parts, (0, chunk))
            budget = token_budget(grid, tbt, rows, longest)
            said.append(f"A budget of {budget} tokens a step keeps the longest step within {tbt:g} s, as measured.")
        sized = [policy(p.name, budget=budget, tile=tile) if p.name in CHUNKED else p for p in chosen]
        text = comparison.prompts(trace, vocabulary, seed)
        field = comparison.contenders(served, sized, rows, longest, instances)
        runs = {name: comparison.run(e, trace, text, Clock(real=real_time)) for name, e in field.items()}
    agree = {
        name: None if unchecked else all(comparison.alone(served, p, a) for p, a in zip(text, r.tokens, strict=True))
        for name, r in runs.items()
    }
    rows_of = tuple({"policy": name, **comparison.figures(r, agree[name])} for name, r in runs.items())
    best = min(runs, key=lambda name: runs[name].makespan)
    said.append(f"{best} ends first. Each run serves the same {requests} requests; time in which nothing runs is "
                f"{'waited for' if real_time else 'skipped'}.")  # fmt: skip
    return Explanation(
        {"request_rate": rate, "budget": budget, "parameters": sum(p.numel() for p in served.parameters())},
        (Table("Policies on the same requests", rows_of),),
        tuple(said),
    )


TOPIC = Topic(
    "engine",
    "What do scheduling policies do on a real model on this machine?",
    "Agrawal et al., SARATHI, 2023, and Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, OSDI "
    "2024; Yang et al., Flover, 2023",
    (
        Option("policies", names, f"Which, with commas between: {', '.join(POLICIES)}.", tuple(POLICIES)),
        Option("instances", int, "Engines that serve batch after batch beside each other; below 2: not shown.", 2),
        Option("requests", int, "How many are served.", 64),
        Option("rate", float, "Requests a second; without it, as many as the engine just serves.", None),
        Option("isl", float, "Mean tokens of a prompt.", 32.0),
        Option("osl", float, "Mean tokens of an answer.", 32.0),
        Option("spread", float, "Standard deviation of lengths over their mean.", 1.0),
        Option("rows", int, "Requests that the cache holds at once.", 16),
        Option("budget", int, f"Most tokens of a step of {' and '.join(CHUNKED)}.", 64),
        Option("tbt", float, "Seconds between tokens at most; sizes the budget from measured steps.", None),
        Option("tile", int, "Tokens that kernels work on at a time, for piggyback.", 16),
        Option("model", str, "Folder of a checkpoint; without it, a random Llama.", None),
        Option("hidden", int, "Width of the random Llama.", 256),
        Option("layers", int, "Layers of the random Llama.", 4),
        Option("device", str, "Where it runs, as torch writes it.", "cpu"),
        Option("threads", int, "Threads of the CPU's operators.", 1),
        Option("real_time", bool, "Wait for arrivals instead of skipping time in which nothing runs.", False),
        Option("unchecked", bool, "Do not compare answers with those of each request alone.", False),
        Option("seed", int, "Of lengths, arrivals, prompts and weights.", 0),
    ),
    _explain,
    "--policies stall-free,prefill-first,request-level --requests 32 --osl 24",
)  # fmt: skip
