"""Training on any image set: the tokenizer, the base models, and what a plugin's schedule asks for."""
