"""Rows and images of a run on several devices, of one machine or many: what is cut up, who does it, and what comes back."""
