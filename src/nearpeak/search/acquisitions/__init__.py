"""What an evaluation is worth by a surrogate's beliefs: improvement, information, the chance of meeting constraints.

An acquisition is ``acquisition(posterior, x [m, f], best) -> [m]``, larger is better. Where it is largest is found by
``candidates``; methods that choose in other ways are ``strategies``.
"""
