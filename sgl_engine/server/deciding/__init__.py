"""Typed questions about one input over HTTP, in the shape of OpenAI's Decisions.

``fields`` is what clients send, ``translate`` makes ``sgl_engine.decisions`` of it and writes answers, and
``routes`` has the handler.
"""
