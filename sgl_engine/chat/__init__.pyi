from .text_stream import TextDelta as TextDelta
from .thoughts import ReasoningDelta as ReasoningDelta, ThoughtTags as ThoughtTags
from .tool_stream import ToolCallDelta as ToolCallDelta
from .tool_calls import ParsedAnswer as ParsedAnswer
