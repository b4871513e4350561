"""Training and evaluation: the only room that uses accelerate. Must not know figures or notebooks."""
