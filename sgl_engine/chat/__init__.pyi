from .tool_stream import TextDelta as TextDelta, ToolCallDelta as ToolCallDelta
