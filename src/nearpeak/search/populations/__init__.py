"""Searches by a population or a walk: evolution over one and several objectives, annealing, local search; dominance and
hypervolume.
"""
