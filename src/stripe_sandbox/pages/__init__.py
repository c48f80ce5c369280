"""The pages for customers: plain HTML without scripts; all values are escaped."""
