"""Between LangChain's messages and the engine's requests.

In go messages, tools, schemas and a call's keyword arguments; out come ``Request``s for an engine, whose
weights are shared in the process, and from its events messages, chunks and custom events. No module here
makes a call: ``langchain_sgl.chat_models`` does.
"""
