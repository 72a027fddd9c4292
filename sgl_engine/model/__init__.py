"""One loaded vision-language model: from a folder or the hub, to embeddings and a step of the decoder."""
