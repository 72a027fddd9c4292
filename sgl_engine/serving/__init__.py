"""Lets requests in, and runs their passes in one thread, side by side. Knows no model.

Roads go in, and results come out: ``scheduler`` lets requests in and takes them along their roads, ``job`` is
one pass of one request, ``lane`` holds the jobs of one model, and ``worker`` is the thread.
"""
