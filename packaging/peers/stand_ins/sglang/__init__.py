__version__ = "0.5.23"  # what the rest is from
