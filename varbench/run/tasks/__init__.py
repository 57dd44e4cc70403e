"""What children do, a module each: `run(job, channel)`. `subject` holds plugins and makes images; who scores holds none."""
