"""What is measured inside a child: time, memory, energy, and on which machine."""
