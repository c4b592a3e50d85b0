"""Commands as jobs of a Ray cluster: `oacir submit` and `oacir jobs …`."""
