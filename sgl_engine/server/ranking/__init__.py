"""Lists of documents, ranked and scored over HTTP, in the shapes of vLLM, Jina and Cohere.

``fields`` is what clients send, ``documents`` translates it, ``lists`` scores a list side by side, and
``routes`` writes the answers. When a list is settled is said in ``sgl_engine.relevance``.
"""
