"""Small things that every room uses and that know none of them: folders, files that are whole, hashes, statistics, the display."""
