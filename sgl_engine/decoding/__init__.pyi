from .answer import (
    AnswerTask as AnswerTask,
    Draft as Draft,
    FinishReason as FinishReason,
    Generation as Generation,
    TokenLogprob as TokenLogprob,
    draft_tokens as draft_tokens,
)
from .reader import agree as agree
