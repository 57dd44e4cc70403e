"""Methods, each a module or package of its own that registers as a plugin."""
