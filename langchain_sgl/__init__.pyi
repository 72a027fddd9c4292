from .budget.middleware import (
    EscalationBudgetMiddleware as EscalationBudgetMiddleware,
    EscalationBudgetState as EscalationBudgetState,
)
from .chat.hosted import LangChainModel as LangChainModel
from .chat.image_blocks import image_block as image_block
from .chat.pair import forget_engines as forget_engines
from .chat_models import ChatSGL as ChatSGL
from .decisions.model import (
    SGLDecisionModel as SGLDecisionModel,
    SGLDecisionResponse as SGLDecisionResponse,
)
from .evidence import Evidence as Evidence, EvidenceSpan as EvidenceSpan
from .first import SGLFirstMiddleware as SGLFirstMiddleware
from .indexing.files import PictureFailure as PictureFailure
from .indexing.indexer import SGLImageBlobParser as SGLImageBlobParser, SGLImageIndexer as SGLImageIndexer
from .indexing.manifest import RemovedDocument as RemovedDocument
from .indexing.progress import IndexProgress as IndexProgress
from .indexing.run import IncompleteIndexError as IncompleteIndexError
from .reranking.reranker import SGLImageReranker as SGLImageReranker
from .tools.picture_store import (
    InMemoryPictureStore as InMemoryPictureStore,
    PictureStore as PictureStore,
    as_picture_store as as_picture_store,
)
from .tools.picture_tool import PictureAnswer as PictureAnswer, ShownPicture as ShownPicture
from .tools.toolkit import (
    SGLToolkit as SGLToolkit,
    TranscribeTool as TranscribeTool,
    VisualQuestionTool as VisualQuestionTool,
)
from .usage.callbacks import (
    SGLUsageCallbackHandler as SGLUsageCallbackHandler,
    get_sgl_usage_callback as get_sgl_usage_callback,
)
from .usage.hiding import hide_pictures as hide_pictures
from .usage.usage import SGLUsage as SGLUsage

__version__: str
