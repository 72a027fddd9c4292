"""Collections of pictures as Documents.

In go folders, files or blobs; out come Documents that say what is on each picture, lazily, one run after
another without asking twice. A manifest, a SQLite file, remembers what was answered and delivered.
"""
