"""Labelled images behind one small interface: the procedural set `shapes`, any folder of class
sub-folders, and four idx files as MNIST has them."""
