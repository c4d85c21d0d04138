"""The interface in plain torch: what backends are compared with, and what serves where none can be had."""
