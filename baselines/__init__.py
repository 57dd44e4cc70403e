"""What every method is measured against, each module a plugin."""
