"""Retrieved documents of pictures, ordered by how well each picture answers a query.

In go documents and a query; out come the documents with a relevance score, the likeliest first. Every score
is a run of a chat model, so traces, usage and budgets see it.
"""
