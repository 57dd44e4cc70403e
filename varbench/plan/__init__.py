"""What a row computes, keeps and drops: compiled from policies, counted, and predicted for any hardware. No torch."""
