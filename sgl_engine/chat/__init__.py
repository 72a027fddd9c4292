"""Messages <-> text: templates, tool calls, grammars, and text that comes piece by piece. Knows no model."""
