"""Evaluations that can be cheaper than whole: trainings that stop early or go on later, small models in place of large
ones, and the mixtures of data that they are trained on.
"""
