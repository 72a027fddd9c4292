"""Limits on how often, and at what cost, the large model is called.

In go an agent's limits and the reports of its runs; out comes, for each call, whether it may escalate. The
gate is a context variable that every ``ChatSGL`` asks; the ledger counts; the middleware joins both to an
agent.
"""
