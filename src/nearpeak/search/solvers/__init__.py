"""Discrete problems whose objective is known: integer programs, min-max rounding, memory maps, a small set of
configurations that serves many tasks. None of them evaluates anything that costs.
"""
