from .pictures import Reused as Reused
from .exactness import check_exactness as check_exactness
from .large import (
    LargePassResult as LargePassResult,
    run_large_batch as run_large_batch,
    run_large_pass as run_large_pass,
)
from .neutral import NeutralMap as NeutralMap, run_neutral_batch as run_neutral_batch
from .scored_texts import ScoringPassResult as ScoringPassResult
from .scoring import run_scoring_pass as run_scoring_pass
from .small import (
    SmallPassResult as SmallPassResult,
    answer_logprobs as answer_logprobs,
    run_small_batch as run_small_batch,
    run_small_pass as run_small_pass,
)
from .work import Asked as Asked, SmallPass as SmallPass, run_small as run_small
