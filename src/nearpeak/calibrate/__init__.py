"""Fits calibrations to measurements and scores predictions against them.

Here live the reading of measured tables (``tables``, and ``samples`` beside their physics), the refusal of those that
cannot be right (``checks``), the fits (``operators``, ``engines``, ``training``, ``power``, ``network``) and what they
predict of rows left out (``left_out``), refits of whole calibrations (``refit``) kept by name (``store``), and the
accuracy board (``scoring``, ``board``). Here live no predictions of its own (``cost``) and no running (``measure``).
"""
