"""Running a model on many devices: what processes say to each other, over ``torch.distributed``.

    from nearpeak.train import hierarchical_all_reduce

    hierarchical_all_reduce(gradient, devices=8)  # in place, like torch.distributed.all_reduce

Here live collectives that the backends lack. What they cost is in ``cost``. This room needs torch:
``pip install nearpeak[torch]``.
"""

from nearpeak.errors import NearpeakError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise NearpeakError("nearpeak.train needs torch: pip install nearpeak[torch]") from error

from nearpeak.train.all_reduce import Rounds, hierarchical_all_reduce

__all__ = ["Rounds", "hierarchical_all_reduce"]
