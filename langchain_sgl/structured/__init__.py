"""Schemas and tools as callers write them, and answers that have to be in a schema.

In go pydantic models, types, TypedDicts, functions and dictionaries; out come OpenAI's tools and JSON schemas
for a request, and a parser that makes of the answer what was asked for.
"""
