from .binding import (
    Binding as Binding,
    Conditions as Conditions,
    ModelIdentity as ModelIdentity,
    bind as bind,
    digest as digest,
)
from .calibrated import system_hash as system_hash
from .calibration_file import (
    RISKS as RISKS,
    WHOLE_RISKS as WHOLE_RISKS,
    Agreement as Agreement,
    Calibration as Calibration,
    Reference as Reference,
    Risk as Risk,
    Rung as Rung,
    Samples as Samples,
    load_calibration as load_calibration,
)
from .calibrators import (
    ANSWER_TOKENS as ANSWER_TOKENS,
    SCORE as SCORE,
    Calibrator as Calibrator,
    Feature as Feature,
    Isotonic as Isotonic,
    Logistic as Logistic,
    observe as observe,
)
from .decision import (
    DEFAULT_SCORER as DEFAULT_SCORER,
    SCORERS as SCORERS,
    find_scorer as find_scorer,
    CalibratedScore as CalibratedScore,
    ChosenRung as ChosenRung,
    Confidence as Confidence,
    ExitDecision as ExitDecision,
    Scorer as Scorer,
    decide_exit as decide_exit,
    geometric_mean as geometric_mean,
    measure_answer as measure_answer,
    product as product,
    reads_consistency as reads_consistency,
    score_parts as score_parts,
)
from .per_call import CallChoices as CallChoices
from .points import OperatingPoint as OperatingPoint, SharePoint as SharePoint
from .sealed_file import SealedFile as SealedFile, load_sealed as load_sealed
