from .answers import (
    BoxAnswer as BoxAnswer,
    ChoiceAnswer as ChoiceAnswer,
    DecisionAnswer as DecisionAnswer,
    DecisionReport as DecisionReport,
    Decisions as Decisions,
    RefusedAnswer as RefusedAnswer,
    ScoreAnswer as ScoreAnswer,
    YesNoAnswer as YesNoAnswer,
)
from .calibrated import (
    BoxCalibration as BoxCalibration,
    DecisionCalibration as DecisionCalibration,
    TypeCalibration as TypeCalibration,
    curved as curved,
    how_boxed as how_boxed,
    how_put as how_put,
)
from .decide import decide as decide, said as said
from .forms import (
    BareForm as BareForm,
    InstructedForm as InstructedForm,
    Option as Option,
    PromptForm as PromptForm,
    PutQuestion as PutQuestion,
)
from .measures import (
    brier as brier,
    expected_calibration_error as expected_calibration_error,
    overlap as overlap,
)
from .questions import (
    MAX_LABELS as MAX_LABELS,
    MAX_QUESTIONS as MAX_QUESTIONS,
    SCORED_TYPES as SCORED_TYPES,
    BoxQuestion as BoxQuestion,
    ChoiceQuestion as ChoiceQuestion,
    Content as Content,
    DecisionQuestion as DecisionQuestion,
    QuestionType as QuestionType,
    ScoreQuestion as ScoreQuestion,
    YesNoQuestion as YesNoQuestion,
)
from .settings import BoxWay as BoxWay, DecisionConfig as DecisionConfig, LabelWay as LabelWay
from .shares import tempered as tempered
from .state import as_content as as_content, as_request as as_request
