"""One step at a time: decode the router's arrays, run the model, sample. Knows nothing of gRPC streams or
files."""
