"""Ways to choose what to try next: batches, workers that never wait, beliefs and preferences of a user, prices, games,
graphs, language models.

Each is a method of ``search.methods``: ``propose(space, history, count, rng)``.
"""
