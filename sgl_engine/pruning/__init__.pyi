from .layer_inputs import LayerInputs as LayerInputs
from .patch import prune_visual_tokens as prune_visual_tokens
from .plan import (
    KeptColumns as KeptColumns,
    PruningPlan as PruningPlan,
    choose_tiles as choose_tiles,
    keep_everything as keep_everything,
    plan_pruning as plan_pruning,
)
