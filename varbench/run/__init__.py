"""Rows in processes of their own: what runs when, how a child ends, and the record that is left."""
