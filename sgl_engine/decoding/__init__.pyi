from .answer import (
    AnswerTask as AnswerTask,
    FinishReason as FinishReason,
    Generation as Generation,
    TokenLogprob as TokenLogprob,
)
from .choice import resolve as resolve
from .draft import Draft as Draft, draft_tokens as draft_tokens
from .reader import agree as agree
