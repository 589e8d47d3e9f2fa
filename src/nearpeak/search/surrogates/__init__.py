"""Beliefs about a function from what was seen of it: Gaussian processes and their kernels, means and hyperparameters;
networks and ensembles; sparse and prior-fitted ones.

A surrogate is ``surrogate(space, history, rng) -> Posterior`` (``gp.Posterior``). What is done with its beliefs is
``acquisitions`` and ``strategies``; ``tournament`` compares surrogates.
"""
