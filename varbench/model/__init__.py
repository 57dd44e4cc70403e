"""The model that every method is measured on: transformer, multi-scale tokenizer, and the files they come from."""
