from .question import (
    YES_OR_NO as YES_OR_NO,
    RelevanceQuestion as RelevanceQuestion,
    default_question as default_question,
)
from .settling import (
    Judged as Judged,
    Round as Round,
    contenders as contenders,
    judge as judge,
    list_score as list_score,
    order as order,
    run_rounds as run_rounds,
    settle as settle,
)
