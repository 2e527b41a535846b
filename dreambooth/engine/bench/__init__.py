"""Speed and memory on this machine, measured with full-size models of random weights."""
