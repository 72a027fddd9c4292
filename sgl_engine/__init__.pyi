from .chat.text_stream import ReasoningDelta as ReasoningDelta, TextDelta as TextDelta
from .chat.tool_stream import ToolCallDelta as ToolCallDelta
from .config import (
    PRESETS as PRESETS,
    TRANSCRIPTION_PRESET as TRANSCRIPTION_PRESET,
    EngineConfig as EngineConfig,
    Escalate as Escalate,
    ExitConfig as ExitConfig,
    Fraction as Fraction,
    GenerationConfig as GenerationConfig,
    LimitsConfig as LimitsConfig,
    OnLargeError as OnLargeError,
    PictureConfig as PictureConfig,
    PatchTokens as PatchTokens,
    Price as Price,
    PruningConfig as PruningConfig,
    ReuseConfig as ReuseConfig,
    SchedulerConfig as SchedulerConfig,
    SendConfig as SendConfig,
    SendMode as SendMode,
    UrlPolicy as UrlPolicy,
    pruning_preset as pruning_preset,
)
from .decoding.answer import FinishReason as FinishReason, TokenLogprob as TokenLogprob
from .engine import SGLEngine as SGLEngine
from .errors import (
    BudgetSpentError as BudgetSpentError,
    ConfigError as ConfigError,
    CorruptImageError as CorruptImageError,
    DeadlineError as DeadlineError,
    EngineClosedError as EngineClosedError,
    EngineError as EngineError,
    HostedAccessError as HostedAccessError,
    HostedAnswerError as HostedAnswerError,
    HostedError as HostedError,
    HostedLimitError as HostedLimitError,
    HostedRequestError as HostedRequestError,
    HostedServerError as HostedServerError,
    ImageError as ImageError,
    ImageFetchError as ImageFetchError,
    ImageLimitError as ImageLimitError,
    IncompatiblePairError as IncompatiblePairError,
    InvalidRequestError as InvalidRequestError,
    MissingImageError as MissingImageError,
    ModelError as ModelError,
    ModelNotFoundError as ModelNotFoundError,
    OverloadedError as OverloadedError,
    ProcessorError as ProcessorError,
    PromptTooLongError as PromptTooLongError,
    RequestCancelledError as RequestCancelledError,
    RequestError as RequestError,
    SGLError as SGLError,
    UnsafePathError as UnsafePathError,
    UnsupportedImageError as UnsupportedImageError,
    UnsafeUrlError as UnsafeUrlError,
    UnsafeWeightsError as UnsafeWeightsError,
    UnsupportedModelError as UnsupportedModelError,
)
from .exit.decision import ExitDecision as ExitDecision
from .hosted.model import (
    HostedAnswer as HostedAnswer,
    HostedCall as HostedCall,
    HostedModel as HostedModel,
    HostedUsage as HostedUsage,
)
from .hosted.openai_model import OpenAIModel as OpenAIModel
from .model.settings import LoadSettings as LoadSettings
from .model.vlm import VLM as VLM
from .planning.check import check_pair as check_pair
from .planning.result import PairCheck as PairCheck
from .report.hosted import PictureReport as PictureReport, SentReport as SentReport
from .report.prices import RunCost as RunCost
from .report.run_report import ModelInfo as ModelInfo, RunReport as RunReport
from .report.spans import instrument as instrument, uninstrument as uninstrument
from .request import (
    Decoding as Decoding,
    ImagePart as ImagePart,
    ImageSource as ImageSource,
    InvalidToolCall as InvalidToolCall,
    Message as Message,
    Request as Request,
    Role as Role,
    ToolCall as ToolCall,
    ToolChoice as ToolChoice,
    ToolSpec as ToolSpec,
)
from .response import AnswerScores as AnswerScores, Response as Response, StreamEvent as StreamEvent

__version__: str
