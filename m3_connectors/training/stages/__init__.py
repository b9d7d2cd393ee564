"""The stages of the recipe (paper sections 3.2 to 3.4): each is an objective over the same encoder and optimiser.

A stage of another kind is a file here and a line in ``STAGES``.
"""

from __future__ import annotations

from collections.abc import Mapping

from m3_connectors.training.stages.distil import Distil
from m3_connectors.training.stages.finetune import Finetune
from m3_connectors.training.stages.retromae import RetroMAE
from m3_connectors.training.stages.stage import Outcome, Stage, StageInputs
from m3_connectors.training.stages.unsupervised import Unsupervised

STAGES: Mapping[str, type[Stage]] = {
    "retromae": RetroMAE,
    "distil": Distil,
    "unsupervised": Unsupervised,
    "finetune": Finetune,
}
"""The stages by the name that a configuration gives as ``objective``."""

__all__ = ["STAGES", "Outcome", "Stage", "StageInputs"]
