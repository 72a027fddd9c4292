from .text_stream import ReasoningDelta as ReasoningDelta, TextDelta as TextDelta
from .tool_stream import ToolCallDelta as ToolCallDelta
from .tool_calls import ParsedAnswer as ParsedAnswer
