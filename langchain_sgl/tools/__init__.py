"""Tools that let an agent ask about pictures.

In goes a reference that an agent wrote (an id, a file name, a URL, base64 data) with a question; out come a
text for the agent and a JSON artifact for the program. References are looked up in a store or under one
folder alone.
"""
