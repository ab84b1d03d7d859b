"""`dinov3 inspect`: a full pass over a source, which can be stopped and resumed."""
