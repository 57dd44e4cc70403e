"""What children do, a module each: `run(job, channel)`. `making` holds plugins and makes images; `scoring` holds none."""
