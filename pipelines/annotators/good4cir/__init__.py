"""Texts by way of lists of objects (good4cir): those of the reference, those of the target, what differs."""
