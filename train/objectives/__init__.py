"""What a model is trained for: `from train.objectives import Causal`. One file each, over shared parts.

`objective.py` says what an objective is; a new one is a file like `causal.py` and a member of `Objective` here.
Part of the spine; may import `data`, `models` and `tokenizer_lab`.
"""

from train.objectives.causal import Causal
from train.objectives.masked import Masked
from train.objectives.objective import AnyObjective, Batch, Sums
from train.objectives.replaced import Replaced
from train.objectives.substitutions import ClusteredSubstitution, RandomSubstitution

__all__ = [
    "AnyObjective",
    "Batch",
    "Causal",
    "ClusteredSubstitution",
    "Masked",
    "Objective",
    "RandomSubstitution",
    "Replaced",
    "Sums",
]

Objective = Causal | Masked | Replaced | RandomSubstitution | ClusteredSubstitution
"""What a recipe can name; the first is the default of configs without a kind."""
