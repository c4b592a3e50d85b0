"""`oacir doctor`: whether this machine can do what it will be asked."""
