"""Decision models: typed questions about text and pictures, answered with probabilities."""
