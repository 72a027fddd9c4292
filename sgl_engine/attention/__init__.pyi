from .canvas import EDGE_DIGITS as EDGE_DIGITS, Canvas as Canvas, paint as paint
from .capture import (
    capture_attention as capture_attention,
    capture_hidden as capture_hidden,
    keep_rows as keep_rows,
)
from .importance import (
    AttentionSums as AttentionSums,
    ImportanceMap as ImportanceMap,
    importance_map as importance_map,
)
from .recorder import AttentionRecorder as AttentionRecorder, Scoring as Scoring
from .rows import AttentionRows as AttentionRows, RowKeeper as RowKeeper
