"""Labelled images behind one small interface: the procedural set `shapes`, and any folder of class sub-folders."""
