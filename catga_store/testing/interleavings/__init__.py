"""Interleavings: two or three clients advanced exchange by exchange, in drawn orders, and checked."""
